"""Small ONNX models from text, with the initializers that the text names."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

D_MODEL, D_FF = 32, 64
Arrays = dict[str, NDArray[np.generic]]


GATED = "z = MatMul (x, w_gate)\nu = MatMul (x, w_up)\na = Relu (z)\nh = Mul (a, u)\ny = MatMul (h, w_down)"
UNGATED = "z = MatMul (x, w_up)\nh = {}\ny = MatMul (h, w_down)"


MS = ', "com.microsoft" : 1'


ROWS = {"x": f"float[b, {D_MODEL}] x", "y": f"float[b, {D_MODEL}] y"}


F16 = {"x": f"float16[b, s, {D_MODEL}] x", "y": f"float16[b, s, {D_MODEL}] y"}


F64 = {"x": f"double[b, s, {D_MODEL}] x", "y": f"double[b, s, {D_MODEL}] y"}


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {
        "w_gate": (D_MODEL, D_FF),
        "w_up": (D_MODEL, D_FF),
        "w_down": (D_FF, D_MODEL),
        "b_up": (D_FF,),
        "b_down": (D_MODEL,),
    }
    arrays: Arrays = {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    scalars = {"zero": 0.0, "two": 2.0, "large": 3.4028235e38, "six": 6.0}
    return {**arrays, **{name: np.float32(value) for name, value in scalars.items()}}


def model(
    nodes: str,
    arrays: Arrays | None = None,
    *,
    opset: int = 18,
    ir_version: int = 9,
    x: str = f"float[b, s, {D_MODEL}] x",
    y: str = f"float[b, s, {D_MODEL}] y",
    functions: str = "",
    imports: str = "",
) -> ModelProto:
    """A model of the ONNX text ``nodes``, which reads ``x`` and writes ``y``; initializers are added."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]>'
    proto = onnx.parser.parse_model(f"{head}\ng ({x}) => ({y}) {{\n{nodes}\n}}\n{functions}")
    text = nodes + functions
    used = {k: v for k, v in (weights() if arrays is None else arrays).items() if k in text}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in used.items())
    return proto


def named(proto: ModelProto) -> ModelProto:
    """Give every node the name of its kind and its output, as exporters do."""
    graphs = [proto.graph]
    while graphs:
        for node in graphs.pop().node:
            node.name = f"/mlp/{node.op_type}_{node.output[0]}"
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return proto


def transposed() -> Arrays:
    return {
        **weights(),
        "w_up": np.ascontiguousarray(weights()["w_up"].T),
        "w_down": np.ascontiguousarray(weights()["w_down"].T),
    }


def halves() -> Arrays:
    return {k: v.astype(np.float16) for k, v in weights().items() if k != "large"}
