"""Dense FFNs and linear projections in onnxruntime: MatMul in float32, MatMulNBits in 8 and 4 bits."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from engines.ffn_graphs import WORKING_SET, Run, Shape, ort_run, summed

__all__ = ["ort_dense", "ort_linear"]


def ort_dense(shape: Shape, kind: str, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """Dense onnxruntime: ``f32`` by MatMul, ``q8`` and ``q4`` by MatMulNBits with groups of 32, accuracy_level 4."""
    bits = {"f32": 32.0, "q8": 10.0, "q4": 6.0}[kind]
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    count = shape.layers(bits if kind == "f32" else bits - 1.5)

    def linear(a: str, d_in: int, d_out: int, y: str) -> None:
        if kind == "f32":
            array = rng.standard_normal((d_in, d_out), np.float32) * np.float32(d_in**-0.5)
            tensors.append(onnx.numpy_helper.from_array(array, f"w_{y}"))
            nodes.append(helper.make_node("MatMul", [a, f"w_{y}"], [y]))
            return
        width = int(kind[1])
        tensors.append(
            onnx.numpy_helper.from_array(rng.integers(0, 256, (d_out, d_in // 32, 4 * width), np.uint8), f"w_{y}")
        )
        tensors.append(
            onnx.numpy_helper.from_array(
                np.full(d_out * d_in // 32, d_in**-0.5 / 2 ** (width - 2), np.float32), f"s_{y}"
            )
        )
        attributes = {"K": d_in, "N": d_out, "bits": width, "block_size": 32, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", [a, f"w_{y}", f"s_{y}"], [y], domain="com.microsoft", **attributes)
        )

    for layer in range(count):
        linear("x", shape.d_model, shape.d_ff, f"z_{layer}")
        nodes.append(helper.make_node("Relu", [f"z_{layer}"], [f"a_{layer}"]))
        hidden = f"a_{layer}"
        if shape.gated:
            linear("x", shape.d_model, shape.d_ff, f"u_{layer}")
            nodes.append(helper.make_node("Mul", [hidden, f"u_{layer}"], [f"h_{layer}"]))
            hidden = f"h_{layer}"
        linear(hidden, shape.d_ff, shape.d_model, f"y_{layer}")
    model = summed(nodes, tensors, count, shape.d_model)
    return ort_run(model.SerializeToString(), x, threads), count


def ort_linear(d_in: int, d_out: int, width: int, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """MatMulNBits alone."""
    rng = np.random.default_rng(0)
    count = max(1, -(-WORKING_SET * 8 // (d_in * d_out * (width + 1))))
    nodes, tensors = [], [onnx.numpy_helper.from_array(np.full(d_out * d_in // 32, 0.001, np.float32), "s")]
    for i in range(count):
        tensors.append(
            onnx.numpy_helper.from_array(rng.integers(0, 256, (d_out, d_in // 32, 4 * width), np.uint8), f"w_{i}")
        )
        attributes = {"K": d_in, "N": d_out, "bits": width, "block_size": 32, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"w_{i}", "s"], [f"y_{i}"], domain="com.microsoft", **attributes)
        )
    return ort_run(summed(nodes, tensors, count, d_out, d_in).SerializeToString(), x, threads), count
