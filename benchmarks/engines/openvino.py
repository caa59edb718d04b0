"""OpenVINO: the decomposed artifact with its matrices compressed to int8 or int4, as OpenVINO's own tools write them.

The graph is `prosparse-export --decomposed --weights f32 --other-weights f32`: attention in standard operators, which
OpenVINO fuses as far as it can; the KV cache becomes state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

_GROUPS = (128, 64, 32)  # columns: the largest that divides a matrix


def _compressed(weight: np.ndarray, bits: int) -> ov.Node:
    """Return a ``[rows, cols]`` matrix as integers times scales: int8 by row, int4 by groups of at most 128 columns."""
    rows, cols = weight.shape
    if bits == 8:
        scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / 127
        stored = ops.constant(np.rint(weight / scale).astype(np.int8))
        return ops.multiply(ops.convert(stored, "f32"), ops.constant(scale.astype(np.float32)))
    group = next(size for size in _GROUPS if cols % size == 0)
    groups = weight.reshape(rows, cols // group, group)
    scale = np.maximum(np.abs(groups).max(2, keepdims=True), 1e-12) / 7
    values = np.rint(groups / scale).astype(np.int8).reshape(-1)
    packed = (values[::2] & 15 | (values[1::2] & 15) << 4).astype(np.uint8)
    tensor = ov.Tensor(ov.Type.i4, ov.Shape(list(groups.shape)))  # with memory of its own: one around packed has none
    tensor.data[:] = packed.reshape(tensor.data.shape)
    stored = ops.constant(tensor)
    wide = ops.multiply(ops.convert(stored, "f32"), ops.constant(scale.astype(np.float32)))
    return ops.reshape(wide, ops.constant(np.array([rows, cols])), False)


def write_openvino(source: Path, path: Path, bits: int) -> Path:
    """Convert the decomposed artifact ``source``, compress its matrices, save."""
    graph = onnx.load(source, load_external_data=False)
    for tensor in graph.graph.initializer:
        if tensor.name == "logits_to_keep":  # the last position's logits, as the others compute them
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.int64), tensor.name))
    beside = source.with_name(f"last-{source.name}")
    onnx.save(graph, beside)
    core = ov.Core()
    model = core.read_model(beside)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant, transposed = node.input_value(1).get_node(), node.get_attributes()["transpose_b"]
        if constant.get_type_name() == "Transpose" and constant.input_value(0).get_node().get_type_name() == "Constant":
            constant, transposed = constant.input_value(0).get_node(), not transposed
        if constant.get_type_name() != "Constant" or len(constant.get_output_shape(0)) != 2:
            continue
        weight = constant.data if transposed else constant.data.T
        new = ops.matmul(node.input_value(0), _compressed(np.ascontiguousarray(weight, np.float32), bits), False, True)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(new.output(0))
    names = {}
    for value in model.inputs:
        name = value.get_any_name()
        if name.startswith("past_key_values."):
            names[name] = name.replace("past_key_values.", "present.")
    apply_make_stateful_transformation(model, names)
    ov.save_model(model, path, compress_to_fp16=False)
    beside.unlink()
    return path


class OpenVino:
    """A saved model; decode runs its request in a loop."""

    def __init__(self, path: Path, threads: int) -> None:
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        model = ov.Core().read_model(path)
        # The graph reads the batch size from the state, and an empty state would have 0.
        for variable in model.get_variables():
            info = variable.info
            info.data_shape = ov.PartialShape([1, info.data_shape[1], -1, info.data_shape[3]])
            variable.update(info)
        model.reshape({value.get_any_name(): ov.PartialShape([1, -1]) for value in model.inputs})
        self._request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
        self._length = 0

    def _run(self, ids: np.ndarray) -> None:
        past, self._length = self._length, self._length + len(ids)
        feeds = {
            "input_ids": ids[None].astype(np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(past, self._length)[None],
        }
        self._request.infer(feeds)
        self._request.get_output_tensor(0).data[0, -1].argmax()

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Clear the KV cache, then run a prompt."""
        self._request.reset_state()
        self._length = 0
        self._run(ids)

    def decode(self, ids: np.ndarray) -> None:
        """Decode the tokens one by one."""
        for token in ids:
            self._run(np.array([token]))
