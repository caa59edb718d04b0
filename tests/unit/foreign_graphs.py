"""Feed-forward blocks as other exporters write them, built by hand: the same structure, tiny."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

D_MODEL, D_FF = 32, 64
Arrays = dict[str, NDArray[np.generic]]


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


def digits(matrix: NDArray[np.generic]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """MatMulNBits' symmetric 4-bit storage of ``[K, N]``: ``[N, K / 32, 16]`` and scales ``[N, K / 32]``."""
    rows = matrix.T.astype(np.float32).reshape(matrix.shape[1], -1, 32)
    peak = np.take_along_axis(rows, np.abs(rows).argmax(-1, keepdims=True), -1)
    scales = peak / -8
    numbers = (np.clip(np.rint(rows / scales), -8, 7) + 8).astype(np.uint8)
    return numbers[..., ::2] | numbers[..., 1::2] << 4, scales[..., 0].astype(np.float32)


def nbits_arrays(zero_point: int | None = None) -> Arrays:
    arrays: Arrays = {}
    for name in ("gate", "up", "down"):
        packed, scales = digits(weights()[f"w_{name}"])
        arrays |= {f"q_{name}": packed, f"s_{name}": scales}
        if zero_point is not None:
            arrays[f"p_{name}"] = np.full((packed.shape[0], -(-packed.shape[1] // 2)), zero_point * 17, np.uint8)
    return arrays


def nbits(zero_point: str = "") -> str:
    def product(x: str, name: str, y: str, k: int, n: int) -> str:
        inputs = f"{x}, q_{name}, s_{name}" + (f", p_{name}" if zero_point else "")
        return f"{y} = com.microsoft.MatMulNBits <K = {k}, N = {n}, bits = 4, block_size = 32> ({inputs})"

    up = [product("x", "gate", "z", D_MODEL, D_FF), product("x", "up", "u", D_MODEL, D_FF)]
    return "\n".join([*up, "a = Relu (z)\nh = Mul (a, u)", product("h", "down", "y", D_FF, D_MODEL)])


def qdq_arrays() -> Arrays:
    arrays: Arrays = {}
    for name in ("w_up", "w_down"):
        matrix = weights()[name]
        scale = (np.abs(matrix).max(0) / 127).astype(np.float32)
        arrays |= {f"q_{name}": np.rint(matrix / scale).astype(np.int8), f"s_{name}": scale}
    return arrays


QDQ = """w1 = DequantizeLinear <axis = 1> (q_w_up, s_w_up)
w2 = DequantizeLinear <axis = 1> (q_w_down, s_w_down)
z = MatMul (x, w1)
h = Relu (z)
y = MatMul (h, w2)"""
GATED = "z = MatMul (x, w_gate)\nu = MatMul (x, w_up)\na = Relu (z)\nh = Mul (a, u)\ny = MatMul (h, w_down)"
PLAIN = "z = MatMul (x, w_up)\nh = {}\ny = MatMul (h, w_down)"
MS = ', "com.microsoft" : 1'


def transposed() -> Arrays:
    return {
        **weights(),
        "w_up": np.ascontiguousarray(weights()["w_up"].T),
        "w_down": np.ascontiguousarray(weights()["w_down"].T),
    }


def halves() -> Arrays:
    return {k: v.astype(np.float16) for k, v in weights().items() if k != "large"}


def square() -> Arrays:
    rng = np.random.default_rng(3)
    return {f"w_{i}": (rng.standard_normal((D_MODEL, D_MODEL)) / 8).astype(np.float32) for i in range(3)}


def overridable() -> ModelProto:
    """IR 4 and newer: an initializer that is an input too may be replaced by the caller."""
    proto = model(PLAIN.format("Relu (z)"))
    tensor = proto.graph.initializer[0]
    proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return proto


def in_old_ir() -> ModelProto:
    """IR 3: every initializer had to be an input too."""
    proto = model(PLAIN.format("Relu (z)"), opset=13, ir_version=3)
    for t in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return proto


def weights_as_nodes() -> ModelProto:
    proto = model(PLAIN.format("Relu (z)"))
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    del proto.graph.initializer[:]
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    return proto


def in_if() -> ModelProto:
    branch = "z = MatMul (x, w_up)\nh = Relu (z)\nt = MatMul (h, w_down)"
    body = f"(float[b, s, {D_MODEL}] t) {{\n{branch}\n}}"
    other = f"(float[b, s, {D_MODEL}] e) {{ e = Identity (x) }}"
    text = f"y = If (c) <then_branch = one () => {body}, else_branch = two () => {other}>"
    return model(text, x=f"float[b, s, {D_MODEL}] x, bool c")


def in_loop() -> ModelProto:
    """Two rounds of a block, each on what the one before gave."""
    kind = f"float[b, s, {D_MODEL}]"
    block = "on = Identity (go)\nz = MatMul (v, w_up)\nh = Relu (z)\nw = MatMul (h, w_down)"
    body = f"(int64 i, bool go, {kind} v) => (bool on, {kind} w) {{\n{block}\n}}"
    text = "n = Constant <value = int64 {2}> ()\nstart = Constant <value = bool {1}> ()\n"
    return model(text + f"y = Loop (n, start, x) <body = step {body}>")


F16 = {"x": f"float16[b, s, {D_MODEL}] x", "y": f"float16[b, s, {D_MODEL}] y"}
ROWS = {"x": f"float[b, {D_MODEL}] x", "y": f"float[b, {D_MODEL}] y"}
FUNCTION = """<domain: "pkg", opset_import: ["" : 18]> Act (z) => (h) { h = Relu (z) }"""

# name: (the model, blocks rewritten, what the reason of each other block contains)
FOREIGN: dict[str, tuple[Callable[[], ModelProto], int, list[str]]] = {
    "tracing exporter, gated": (lambda: model(GATED, opset=18), 1, []),
    "tracing exporter, opset 13": (lambda: model(GATED, opset=13), 1, []),
    "opset 14": (lambda: model(PLAIN.format("Relu (z)"), opset=14), 1, []),
    "opset 22": (lambda: model(GATED, opset=22, ir_version=10), 1, []),
    "opset 23": (lambda: model(GATED, opset=23, ir_version=11), 1, []),
    "opset 11": (lambda: model(PLAIN.format("Relu (z)"), opset=11), 0, ["opset is 11: expected 13 or newer"]),
    "Clip of opset 10": (lambda: model(PLAIN.format("Clip <min = 0.0> (z)"), opset=10), 0, ["opset is 10"]),
    "two activations in opset 17": (
        lambda: model(
            PLAIN.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nr = Relu (z2)\nh2 = Mul (r, r)\ny = MatMul (h2, w_down)",
            opset=17,
        ),
        1,
        ["opset 17 allows one activation per operator"],
    ),
    "two activations in opset 20": (
        lambda: model(
            PLAIN.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nr = Relu (z2)\nh2 = Mul (r, r)\ny = MatMul (h2, w_down)",
            opset=20,
        ),
        2,
        [],
    ),
    "keras, Gemm with biases": (
        lambda: model("z = Gemm (x, w_up, b_up)\nh = Relu (z)\ny = Gemm (h, w_down, b_down)", **ROWS),
        1,
        [],
    ),
    "tf2onnx, biases of two dimensions": (
        lambda: model(
            "p = MatMul (x, w_up)\nz = Add (p, b_up)\nh = Relu (z)\nq = MatMul (h, w_down)\ny = Add (b_down, q)",
            {**weights(), "b_up": weights()["b_up"][None], "b_down": weights()["b_down"][None]},
            **ROWS,
        ),
        1,
        [],
    ),
    "Gemm with transB": (
        lambda: model(
            "z = Gemm <transB = 1> (x, w_up, b_up)\nh = Relu (z)\ny = Gemm <transB = 1> (h, w_down, b_down)",
            transposed(),
            **ROWS,
        ),
        1,
        [],
    ),
    "Gemm with alpha": (
        lambda: model("z = Gemm <alpha = 0.5> (x, w_up, b_up)\nh = Relu (z)\ny = Gemm (h, w_down, b_down)", **ROWS),
        0,
        ["expected alpha and beta 1"],
    ),
    "Gemm between two Reshapes": (
        lambda: model(
            "r = Reshape (x, flat)\nz = Gemm (r, w_up, b_up)\nh = Relu (z)\n"
            "q = Gemm (h, w_down, b_down)\ns = Shape (x)\ny = Reshape (q, s)",
            {**weights(), "flat": np.array([-1, D_MODEL])},
        ),
        1,
        [],
    ),
    "Relu as Max": (lambda: model(PLAIN.format("Max (zero, z)")), 1, []),
    "Relu as Clip": (lambda: model(PLAIN.format("Clip (z, zero)")), 1, []),
    "Relu as Clip with the largest float": (lambda: model(PLAIN.format("Clip (z, zero, large)")), 1, []),
    "Relu6": (lambda: model(PLAIN.format("Clip (z, zero, six)")), 0, ["activation is Clip, not a ReLU"]),
    "ThresholdedRelu": (lambda: model(PLAIN.format("ThresholdedRelu <alpha = 0.25> (z)")), 1, []),
    "Dropout and Identity between": (
        lambda: model("z = MatMul (x, w_up)\ni = Identity (z)\nr = Relu (i)\nh = Dropout (r)\ny = MatMul (h, w_down)"),
        1,
        [],
    ),
    "weights behind Transpose": (
        lambda: model(
            "w1 = Transpose <perm = [1, 0]> (w_up)\nw2 = Transpose <perm = [1, 0]> (w_down)\n"
            "z = MatMul (x, w1)\nh = Relu (z)\ny = MatMul (h, w2)",
            transposed(),
        ),
        1,
        [],
    ),
    "weights in float16 behind Cast": (
        lambda: model(
            "w1 = Cast <to = 1> (w_up)\nw2 = Cast <to = 1> (w_down)\nz = MatMul (x, w1)\n"
            "h = Relu (z)\ny = MatMul (h, w2)",
            halves(),
        ),
        1,
        [],
    ),
    "weights as Constant nodes": (weights_as_nodes, 1, []),
    "weights shared by two blocks": (
        lambda: model(
            PLAIN.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nh2 = Relu (z2)\ny = MatMul (h2, w_down)"
        ),
        2,
        [],
    ),
    "everything in float16": (lambda: model(GATED, halves(), **F16), 1, []),
    "initializers as inputs, IR 3": (in_old_ir, 1, []),
    "an initializer that a caller may replace": (overridable, 0, ["may be replaced by the caller"]),
    "a local function": (
        lambda: model(
            "z = MatMul (x, w_up)\nh = pkg.Act (z)\ny = MatMul (h, w_down)", functions=FUNCTION, imports=', "pkg" : 1'
        ),
        1,
        [],
    ),
    "QDQ weights": (lambda: model(QDQ, qdq_arrays()), 0, ["integers (DequantizeLinear)"]),
    "QDQ activations": (
        lambda: model(
            "z = MatMul (x, w_up)\nr = Relu (z)\nq = QuantizeLinear (r, step)\n"
            "h = DequantizeLinear (q, step)\ny = MatMul (h, w_down)",
            {**weights(), "step": np.float32(0.05)},
        ),
        0,
        ["its activations are quantised"],
    ),
    "model builder, int4": (lambda: model(nbits(), nbits_arrays(), imports=MS), 0, ["4-bit (MatMulNBits)"]),
    "model builder, int4 with zero points of 8": (
        lambda: model(nbits("p"), nbits_arrays(8), imports=MS),
        0,
        ["4-bit (MatMulNBits)"],
    ),
    "model builder, asymmetric int4": (
        lambda: model(nbits("p"), nbits_arrays(7), imports=MS),
        0,
        ["MatMulNBits has zero points"],
    ),
    "saved by onnxruntime with its fusions": (
        lambda: model(
            'h = com.microsoft.FusedGemm <activation = "Relu"> (x, w_up, b_up)\ny = Gemm (h, w_down, b_down)',
            imports=MS,
            **ROWS,
        ),
        0,
        ["FusedGemm '/mlp/FusedGemm_h' has its ReLU inside"],
    ),
    "in the body of If": (in_if, 0, ["it is in the body of If"]),
    "in the body of Loop": (in_loop, 0, ["it is in the body of Loop"]),
    "a norm before down_proj": (
        lambda: model("z = MatMul (x, w_up)\nr = Relu (z)\nh = LayerNormalization (r, b_up)\ny = MatMul (h, w_down)"),
        0,
        ["a norm stands between"],
    ),
    "gate and up in one product": (
        lambda: model(
            "g = MatMul (x, w_both)\nz, u = Split <axis = -1, num_outputs = 2> (g)\n"
            "a = Relu (z)\nh = Mul (a, u)\ny = MatMul (h, w_down)",
            {**weights(), "w_both": np.concatenate([weights()["w_gate"], weights()["w_up"]], 1)},
        ),
        0,
        ["packed in one product"],
    ),
    "three products of one width": (
        lambda: model(
            "a = MatMul (x, w_0)\nb0 = Relu (a)\nc = MatMul (b0, w_1)\nd = Relu (c)\ny = MatMul (d, w_2)", square()
        ),
        1,
        ["its up_proj is down_proj of another block"],
    ),
    "another output width": (
        lambda: model(
            PLAIN.format("Relu (z)"), {**weights(), "w_down": np.ones((D_FF, 8), np.float32)}, y="float[b, s, 8] y"
        ),
        0,
        ["input width 32 differs from output width 8"],
    ),
    "silu": (
        lambda: model(
            "z = MatMul (x, w_gate)\nu = MatMul (x, w_up)\ns = Sigmoid (z)\na = Mul (z, s)\n"
            "h = Mul (a, u)\ny = MatMul (h, w_down)"
        ),
        0,
        ["gate is Silu, not a ReLU"],
    ),
    "no feed-forward block": (lambda: model("y = Relu (x)"), 0, []),
}
