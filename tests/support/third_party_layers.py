"""FFNs with the linear layers, opsets and subgraphs that other exporters write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto

from support.onnx_text import D_FF, D_MODEL, F16, F64, GATED, ROWS, UNGATED, Arrays, halves, model, transposed, weights

FUNCTION = """<domain: "pkg", opset_import: ["" : 18]> Act (z) => (h) { h = Relu (z) }"""


def square() -> Arrays:
    rng = np.random.default_rng(3)
    return {f"w_{i}": (rng.standard_normal((D_MODEL, D_MODEL)) / 8).astype(np.float32) for i in range(3)}


def overridable() -> ModelProto:
    """IR 4 and newer: an initializer that is an input too may be replaced by the caller."""
    proto = model(UNGATED.format("Relu (z)"))
    tensor = proto.graph.initializer[0]
    proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return proto


def in_old_ir() -> ModelProto:
    """IR 3: every initializer had to be an input too."""
    proto = model(UNGATED.format("Relu (z)"), opset=13, ir_version=3)
    for t in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return proto


def weights_as_nodes() -> ModelProto:
    proto = model(UNGATED.format("Relu (z)"))
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
    """An FFN that a Loop applies twice."""
    kind = f"float[b, s, {D_MODEL}]"
    nodes = "on = Identity (go)\nz = MatMul (v, w_up)\nh = Relu (z)\nw = MatMul (h, w_down)"
    body = f"(int64 i, bool go, {kind} v) => (bool on, {kind} w) {{\n{nodes}\n}}"
    text = "n = Constant <value = int64 {2}> ()\nstart = Constant <value = bool {1}> ()\n"
    return model(text + f"y = Loop (n, start, x) <body = step {body}>")


def relu_in_if() -> ModelProto:
    """MatMuls outside an If, the ReLU in both of its branches."""
    kind = f"float[b, s, {D_FF}]"
    branches = (
        f"then_branch = one () => ({kind} t) {{ t = Relu (z) }}, else_branch = two () => ({kind} e) {{ e = Relu (z) }}"
    )
    text = f"z = MatMul (x, w_up)\nh = If (c) <{branches}>\ny = MatMul (h, w_down)"
    return model(text, x=f"float[b, s, {D_MODEL}] x, bool c")


def matmul_in_if() -> ModelProto:
    """up_proj in both branches of an If, the ReLU and down_proj outside."""
    kind = f"float[b, s, {D_FF}]"
    one, two = f"({kind} t) {{ t = MatMul (x, w_up) }}", f"({kind} e) {{ e = MatMul (x, w_gate) }}"
    text = f"z = If (c) <then_branch = one () => {one}, else_branch = two () => {two}>"
    return model(f"{text}\nh = Relu (z)\ny = MatMul (h, w_down)", x=f"float[b, s, {D_MODEL}] x, bool c")


def relu_in_scan() -> ModelProto:
    """A Scan over the batch, whose body reads the ReLU's input as its own."""
    body = f"step (float[s, {D_FF}] v) => (float[s, {D_FF}] w) {{ w = Relu (v) }}"
    scan = f"h = Scan <num_scan_inputs = 1, body = {body}> (z)"
    return model(f"z = MatMul (x, w_up)\n{scan}\ny = MatMul (h, w_down)")


def as_convolutions() -> Arrays:
    return {f"c_{name}": np.ascontiguousarray(weights()[f"w_{name}"].T[..., None]) for name in ("up", "down")}


# name: (builder, FFNs rewritten, a part of the reason for each other FFN)
LAYERS: dict[str, tuple[Callable[[], ModelProto], int, list[str]]] = {
    "tracing exporter, gated": (lambda: model(GATED, opset=18), 1, []),
    "tracing exporter, opset 13": (lambda: model(GATED, opset=13), 1, []),
    "opset 14": (lambda: model(UNGATED.format("Relu (z)"), opset=14), 1, []),
    "opset 22": (lambda: model(GATED, opset=22, ir_version=10), 1, []),
    "opset 23": (lambda: model(GATED, opset=23, ir_version=11), 1, []),
    "opset 11": (lambda: model(UNGATED.format("Relu (z)"), opset=11), 0, ["opset 11 is too old; expected 13 or newer"]),
    "Clip of opset 10": (lambda: model(UNGATED.format("Clip <min = 0.0> (z)"), opset=10), 0, ["opset 10 is too old"]),
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
        ["alpha and beta of Gemm '/mlp/Gemm_z' must be 1"],
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
    "weights shared by two FFNs": (
        lambda: model(
            UNGATED.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nh2 = Relu (z2)\ny = MatMul (h2, w_down)"
        ),
        2,
        [],
    ),
    "everything in float16": (lambda: model(GATED, halves(), **F16), 1, []),
    "an initializer that is a graph input too": (overridable, 0, ["is also a graph input"]),
    "a local function": (
        lambda: model(
            "z = MatMul (x, w_up)\nh = pkg.Act (z)\ny = MatMul (h, w_down)", functions=FUNCTION, imports=', "pkg" : 1'
        ),
        1,
        [],
    ),
    "in the body of If": (in_if, 0, ["it is in the body of If"]),
    "in the body of Loop": (in_loop, 0, ["it is in the body of Loop"]),
    "gate_proj and up_proj packed": (
        lambda: model(
            "g = MatMul (x, w_both)\nz, u = Split <axis = -1, num_outputs = 2> (g)\n"
            "a = Relu (z)\nh = Mul (a, u)\ny = MatMul (h, w_down)",
            {**weights(), "w_both": np.concatenate([weights()["w_gate"], weights()["w_up"]], 1)},
        ),
        0,
        ["packed into one MatMul"],
    ),
    "three MatMuls of one width": (
        lambda: model(
            "a = MatMul (x, w_0)\nb0 = Relu (a)\nc = MatMul (b0, w_1)\nd = Relu (c)\ny = MatMul (d, w_2)", square()
        ),
        1,
        ["its up_proj is the down_proj of another FFN"],
    ),
    "another output width": (
        lambda: model(
            UNGATED.format("Relu (z)"), {**weights(), "w_down": np.ones((D_FF, 8), np.float32)}, y="float[b, s, 8] y"
        ),
        0,
        ["input width 32 differs from output width 8"],
    ),
    "convolutions of width 1": (
        lambda: model(
            "c = Transpose <perm = [0, 2, 1]> (x)\nz = Conv <kernel_shape = [1]> (c, c_up)\nr = Relu (z)\n"
            "q = Conv <kernel_shape = [1]> (r, c_down)\ny = Transpose <perm = [0, 2, 1]> (q)",
            as_convolutions(),
        ),
        0,
        ["it uses convolutions"],
    ),
    "convolutions of width 3": (
        lambda: model(
            "c = Transpose <perm = [0, 2, 1]> (x)\nz = Conv <pads = [1, 1]> (c, c_up)\nr = Relu (z)\n"
            "q = Conv <pads = [1, 1]> (r, c_down)\ny = Transpose <perm = [0, 2, 1]> (q)",
            {name: np.repeat(array, 3, -1) for name, array in as_convolutions().items()},
        ),
        0,
        [],
    ),
    "weights on the left": (
        lambda: model(
            "c = Transpose <perm = [0, 2, 1]> (x)\nz = MatMul (w_up, c)\nr = Relu (z)\n"
            "q = MatMul (w_down, r)\ny = Transpose <perm = [0, 2, 1]> (q)",
            transposed(),
        ),
        0,
        ["the weight of MatMul '/mlp/MatMul_z' must be its second input"],
    ),
    "a ReLU in the bodies of If, MatMuls outside": (
        relu_in_if,
        0,
        ["the ReLU is in the body of If '/mlp/If_h', but MatMul"] * 2,
    ),
    "a MatMul in the body of If, its ReLU outside": (
        matmul_in_if,
        0,
        ["MatMul '/mlp/MatMul_t' is in the body of If '/mlp/If_z'"],
    ),
    "a ReLU in the body of Scan, MatMuls outside": (
        relu_in_scan,
        0,
        ["the ReLU is in the body of Scan '/mlp/Scan_h', but MatMul"],
    ),
    "everything in double": (
        lambda: model(UNGATED.format("Relu (z)"), {k: v.astype(np.float64) for k, v in weights().items()}, **F64),
        0,
        ["has type DOUBLE; expected FLOAT, FLOAT16 or BFLOAT16"],
    ),
}
