"""Feed-forward blocks as other exporters write them, built by hand: the same structure, tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

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


def quantized_by_onnxruntime(kind: str) -> ModelProto:
    """Return what onnxruntime's own quantizers make of a block: "dynamic", or static, as "QDQ QInt8"."""
    from onnxruntime import quantization

    class Inputs(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(1)
            self._rest = [{"x": rng.standard_normal((2, 4, D_MODEL)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return self._rest.pop() if self._rest else None

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model(PLAIN.format("Relu (z)"), opset=21, ir_version=10), source)
        if kind == "dynamic":
            quantization.quantize_dynamic(source, target)
        else:
            form, _, integer = kind.partition(" ")
            options = {
                "quant_format": quantization.QuantFormat[form],
                "activation_type": quantization.QuantType[integer],
            }
            quantization.quantize_static(source, target, Inputs(), **options)
        return onnx.load(target)


def relu_in_if() -> ModelProto:
    """Products outside of an If, the ReLU in both of its branches."""
    kind = f"float[b, s, {D_FF}]"
    branches = (
        f"then_branch = one () => ({kind} t) {{ t = Relu (z) }}, else_branch = two () => ({kind} e) {{ e = Relu (z) }}"
    )
    text = f"z = MatMul (x, w_up)\nh = If (c) <{branches}>\ny = MatMul (h, w_down)"
    return model(text, x=f"float[b, s, {D_MODEL}] x, bool c")


def product_in_if() -> ModelProto:
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


def rounded() -> Arrays:
    """Matrices of int8 with one scale, for products of integers."""
    arrays: Arrays = {"s_one": np.float32(0.01), "i_zero": np.int8(0), "u_zero": np.uint8(0)}
    for name in ("up", "down"):
        arrays[f"i_{name}"] = np.rint(weights()[f"w_{name}"] * 100).astype(np.int8)
    return {**arrays, "b_up": weights()["b_up"]}


def as_convolutions() -> Arrays:
    return {f"c_{name}": np.ascontiguousarray(weights()[f"w_{name}"].T[..., None]) for name in ("up", "down")}


F16 = {"x": f"float16[b, s, {D_MODEL}] x", "y": f"float16[b, s, {D_MODEL}] y"}
ROWS = {"x": f"float[b, {D_MODEL}] x", "y": f"float[b, {D_MODEL}] y"}
F64 = {"x": f"double[b, s, {D_MODEL}] x", "y": f"double[b, s, {D_MODEL}] y"}
MASK = "z = MatMul (x, w_up)\nc = Greater (z, t)\n{}\ny = MatMul (h, w_down)"
THRESHOLD = {**weights(), "t": np.float32(0.125)}
FUNCTION = """<domain: "pkg", opset_import: ["" : 18]> Act (z) => (h) { h = Relu (z) }"""

# name: (the model, blocks rewritten, what the reason of each other block contains)
FOREIGN: dict[str, tuple[Callable[[], ModelProto], int, list[str]]] = {
    "tracing exporter, gated": (lambda: model(GATED, opset=18), 1, []),
    "tracing exporter, opset 13": (lambda: model(GATED, opset=13), 1, []),
    "opset 14": (lambda: model(PLAIN.format("Relu (z)"), opset=14), 1, []),
    "opset 22": (lambda: model(GATED, opset=22, ir_version=10), 1, []),
    "opset 23": (lambda: model(GATED, opset=23, ir_version=11), 1, []),
    "opset 11": (lambda: model(PLAIN.format("Relu (z)"), opset=11), 0, ["opset 11 is too old; expected 13 or newer"]),
    "Clip of opset 10": (lambda: model(PLAIN.format("Clip <min = 0.0> (z)"), opset=10), 0, ["opset 10 is too old"]),
    "two activations in opset 17": (
        lambda: model(
            PLAIN.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nr = Relu (z2)\nh2 = Mul (r, r)\ny = MatMul (h2, w_down)",
            opset=17,
        ),
        1,
        ["opset 17 supports one activation per operator"],
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
    "an initializer that a caller may replace": (overridable, 0, ["is also a graph input"]),
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
        ["its activations are quantized"],
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
        ["the ReLU is fused into FusedGemm '/mlp/FusedGemm_h'"],
    ),
    "in the body of If": (in_if, 0, ["it is in the body of If"]),
    "in the body of Loop": (in_loop, 0, ["it is in the body of Loop"]),
    "a norm before down_proj": (
        lambda: model("z = MatMul (x, w_up)\nr = Relu (z)\nh = LayerNormalization (r, b_up)\ny = MatMul (h, w_down)"),
        0,
        ["a norm between the activation and down_proj"],
    ),
    "gate and up in one product": (
        lambda: model(
            "g = MatMul (x, w_both)\nz, u = Split <axis = -1, num_outputs = 2> (g)\n"
            "a = Relu (z)\nh = Mul (a, u)\ny = MatMul (h, w_down)",
            {**weights(), "w_both": np.concatenate([weights()["w_gate"], weights()["w_up"]], 1)},
        ),
        0,
        ["packed into one MatMul"],
    ),
    "three products of one width": (
        lambda: model(
            "a = MatMul (x, w_0)\nb0 = Relu (a)\nc = MatMul (b0, w_1)\nd = Relu (c)\ny = MatMul (d, w_2)", square()
        ),
        1,
        ["its up_proj is the down_proj of another FFN"],
    ),
    "another output width": (
        lambda: model(
            PLAIN.format("Relu (z)"), {**weights(), "w_down": np.ones((D_FF, 8), np.float32)}, y="float[b, s, 8] y"
        ),
        0,
        ["input width 32 differs from output width 8"],
    ),
    "torch.where with zeros_like, from the tracing exporter": (
        lambda: model(MASK.format("s = Shape (z)\no = ConstantOfShape (s)\nh = Where (c, z, o)"), THRESHOLD),
        1,
        [],
    ),
    "torch.maximum with zeros_like, from the tracing exporter": (
        lambda: model(PLAIN.replace("h = {}", "s = Shape (z)\no = ConstantOfShape (s)\nh = Max (o, z)")),
        1,
        [],
    ),
    "zeros_like of one number, expanded": (
        lambda: model(
            MASK.format(
                "s = Shape (z)\no = ConstantOfShape <value = float[1] {0}> (one)\ne = Expand (o, s)\n"
                "h = Where (c, z, e)"
            ),
            {**THRESHOLD, "one": np.array([1])},
        ),
        1,
        [],
    ),
    "ones_like is no ReLU": (
        lambda: model(
            MASK.format("s = Shape (z)\no = ConstantOfShape <value = float[1] {1}> (s)\nh = Where (c, z, o)"), THRESHOLD
        ),
        0,
        ["not a ReLU"],
    ),
    "masked_fill": (
        lambda: model(
            "z = MatMul (x, w_up)\nc = LessOrEqual (z, t)\nm = Cast <to = 9> (c)\nh = Where (m, zero, z)\n"
            "y = MatMul (h, w_down)",
            THRESHOLD,
        ),
        1,
        [],
    ),
    "a product with a mask": (
        lambda: model(MASK.format("m = Cast <to = 1> (c)\nh = Mul (m, z)"), THRESHOLD),
        1,
        [],
    ),
    "Where behind Not": (lambda: model(MASK.format("n = Not (c)\nh = Where (n, zero, z)"), THRESHOLD), 1, []),
    "quantize_dynamic": (
        lambda: quantized_by_onnxruntime("dynamic"),
        0,
        ["its activations are quantized (MatMulInteger"],
    ),
    "quantize_static, QDQ": (
        lambda: quantized_by_onnxruntime("QDQ QInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QuantizeLinear"],
    ),
    "quantize_static, QDQ of unsigned integers": (
        lambda: quantized_by_onnxruntime("QDQ QUInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QuantizeLinear"],
    ),
    "quantize_static, QOperator": (
        lambda: quantized_by_onnxruntime("QOperator QUInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QLinearMatMul"],
    ),
    "MatMulIntegerToFloat": (
        lambda: model(
            "xq, xs, xz = DynamicQuantizeLinear (x)\n"
            "z = com.microsoft.MatMulIntegerToFloat (xq, i_up, xs, s_one, xz, i_zero, b_up)\nr = Relu (z)\n"
            "hq, hs, hz = DynamicQuantizeLinear (r)\n"
            "y = com.microsoft.MatMulIntegerToFloat (hq, i_down, hs, s_one, hz, i_zero)",
            rounded(),
            imports=MS,
        ),
        0,
        ["its activations are quantized (MatMulIntegerToFloat"],
    ),
    "DynamicQuantizeMatMul": (
        lambda: model(
            "z = com.microsoft.DynamicQuantizeMatMul (x, i_up, s_one, i_zero, b_up)\nr = Relu (z)\n"
            "y = com.microsoft.DynamicQuantizeMatMul (r, i_down, s_one, i_zero)",
            rounded(),
            imports=MS,
        ),
        0,
        ["its activations are quantized (DynamicQuantizeMatMul"],
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
    "a ReLU in the bodies of If, products outside": (
        relu_in_if,
        0,
        ["the ReLU is in the body of If '/mlp/If_h', but MatMul"] * 2,
    ),
    "a product in the body of If, its ReLU outside": (
        product_in_if,
        0,
        ["MatMul '/mlp/MatMul_t' is in the body of If '/mlp/If_z'"],
    ),
    "a ReLU in the body of Scan, products outside": (
        relu_in_scan,
        0,
        ["the ReLU is in the body of Scan '/mlp/Scan_h', but MatMul"],
    ),
    "far from its product, through operators that nobody listed": (
        lambda: model(
            "z0 = MatMul (x, w_up)\n"
            + "\n".join(f"z{i + 1} = {'Softsign' if i % 2 else 'LpNormalization'} (z{i})" for i in range(80))
            + "\nh = Relu (z80)\ny = MatMul (h, w_down)"
        ),
        0,
        ["its structure is not supported (LpNormalization, Softsign)"],
    ),
    "ReLU attention": (
        lambda: model("k = Transpose <perm = [0, 2, 1]> (x)\np = MatMul (x, k)\nr = Relu (p)\ny = MatMul (r, x)"),
        0,
        ["the weight of MatMul '/mlp/MatMul_p' is computed at run time"],
    ),
    "ReLU after Softmax": (
        lambda: model("z = MatMul (x, w_up)\ns = Softmax (z)\nh = Relu (s)\ny = MatMul (h, w_down)"),
        0,
        [],
    ),
    "everything in double": (
        lambda: model(PLAIN.format("Relu (z)"), {k: v.astype(np.float64) for k, v in weights().items()}, **F64),
        0,
        ["has type DOUBLE; expected FLOAT, FLOAT16 or BFLOAT16"],
    ),
    "a ReLU times a number": (
        lambda: model("z = MatMul (x, w_up)\nr = Relu (z)\nh = Mul (r, two)\ny = MatMul (h, w_down)"),
        0,
        ["unsupported nodes beside the ReLU: Mul '/mlp/Mul_h'"],
    ),
    "a gate times a number": (
        lambda: model(GATED.replace("a = Relu (z)", "r = Relu (z)\na = Mul (two, r)")),
        0,
        ["unsupported nodes beside the ReLU: Mul '/mlp/Mul_a'"],
    ),
    "a ReLU in float16 and back": (
        lambda: model(
            "z = MatMul (x, w_up)\nr = Relu (z)\ni = Cast <to = 10> (r)\nh = Cast <to = 1> (i)\ny = MatMul (h, w_down)"
        ),
        0,
        ["unsupported nodes beside the ReLU: Cast '/mlp/Cast_i', Cast '/mlp/Cast_h'"],
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
