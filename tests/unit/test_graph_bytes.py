"""Bytes that a decode step reads: the graph's own, for every weight format."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import weights_model

from graph_passes import FFN_FORMATS, FfnFormat, format_of, is_quantized, quantize
from graph_passes.custom_ops import sparse_gated_ffn
from prosparse_export.analysis.ffn_nodes import ffn_nodes
from prosparse_export.analysis.graph_bytes import ffn_shape, other_bytes
from prosparse_export.analysis.roofline import Ffn


@pytest.mark.parametrize("weights", [f for f in FFN_FORMATS if f != "bf16"])
def test_sizes_are_the_graphs(weights: FfnFormat) -> None:
    inputs: dict[str, np.ndarray] = {}
    for name in ("gate", "up", "down"):
        own = format_of(weights, is_down=name == "down")
        matrix = np.ones((96, 64), np.float16 if own == "f16" else np.float32)
        arrays = quantize(matrix, own) if is_quantized(own) else (matrix,)
        inputs |= dict(zip((f"w_{name}", f"s_{name}"), arrays, strict=False))
        inputs[f"b_{name}"] = np.zeros(64 if name == "down" else 96, np.float32)
    model = weights_model(sparse_gated_ffn(weights), inputs, 2, activation="relu", threshold=0.0)
    assert ffn_shape(model, ffn_nodes(model)[0], 0.5) == Ffn(64, 96, True, weights, 0.5)
    assert other_bytes(model, 1) == 0
    stored = sum(array.nbytes for name, array in inputs.items() if name[0] != "b")
    assert Ffn(64, 96, True, weights, 0.0).dense_bytes == stored


def test_a_sliding_window_reads_its_own_tokens() -> None:
    model = onnx.ModelProto()
    for name in ("past_key_values.0.key", "past_key_values.1.key"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT8, ["b", 2, "past", 34]))
    for layer, window in ((0, 8), (1, -1)):
        inputs = ["qkv", "", "", f"past_key_values.{layer}.key"]
        node = helper.make_node("GroupQueryAttention", inputs, ["y"], local_window_size=window)
        model.graph.node.append(node)
    assert other_bytes(model, 5) == 2 * 34 * (5 + 5)
    assert other_bytes(model, 100) == 2 * 34 * (8 + 100)
