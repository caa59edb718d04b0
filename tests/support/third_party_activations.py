"""FFNs with the activations that other exporters write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from support.onnx_text import GATED, MS, ROWS, UNGATED, model, weights

MASK = "z = MatMul (x, w_up)\nc = Greater (z, t)\n{}\ny = MatMul (h, w_down)"

THRESHOLD = {**weights(), "t": np.float32(0.125)}


# name: (builder, FFNs rewritten, a part of the reason for each other FFN)
ACTIVATIONS: dict[str, tuple[Callable[[], ModelProto], int, list[str]]] = {
    "two activations in opset 17": (
        lambda: model(
            UNGATED.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nr = Relu (z2)\nh2 = Mul (r, r)\ny = MatMul (h2, w_down)",
            opset=17,
        ),
        1,
        ["opset 17 supports one activation per operator"],
    ),
    "two activations in opset 20": (
        lambda: model(
            UNGATED.format("Relu (z)").replace("y =", "v =")
            + "\nz2 = MatMul (v, w_up)\nr = Relu (z2)\nh2 = Mul (r, r)\ny = MatMul (h2, w_down)",
            opset=20,
        ),
        2,
        [],
    ),
    "Relu as Max": (lambda: model(UNGATED.format("Max (zero, z)")), 1, []),
    "Relu as Clip": (lambda: model(UNGATED.format("Clip (z, zero)")), 1, []),
    "Relu as Clip with the largest float": (lambda: model(UNGATED.format("Clip (z, zero, large)")), 1, []),
    "Relu6": (lambda: model(UNGATED.format("Clip (z, zero, six)")), 0, ["activation is Clip, not a ReLU"]),
    "ThresholdedRelu": (lambda: model(UNGATED.format("ThresholdedRelu <alpha = 0.25> (z)")), 1, []),
    "Dropout and Identity between": (
        lambda: model("z = MatMul (x, w_up)\ni = Identity (z)\nr = Relu (i)\nh = Dropout (r)\ny = MatMul (h, w_down)"),
        1,
        [],
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
    "a norm before down_proj": (
        lambda: model("z = MatMul (x, w_up)\nr = Relu (z)\nh = LayerNormalization (r, b_up)\ny = MatMul (h, w_down)"),
        0,
        ["a norm between the activation and down_proj"],
    ),
    "torch.where with zeros_like, from the tracing exporter": (
        lambda: model(MASK.format("s = Shape (z)\no = ConstantOfShape (s)\nh = Where (c, z, o)"), THRESHOLD),
        1,
        [],
    ),
    "torch.maximum with zeros_like, from the tracing exporter": (
        lambda: model(UNGATED.replace("h = {}", "s = Shape (z)\no = ConstantOfShape (s)\nh = Max (o, z)")),
        1,
        [],
    ),
    "zeros_like of a scalar, expanded": (
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
    "ones_like is not a ReLU": (
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
    "multiplication by a mask": (
        lambda: model(MASK.format("m = Cast <to = 1> (c)\nh = Mul (m, z)"), THRESHOLD),
        1,
        [],
    ),
    "Where behind Not": (lambda: model(MASK.format("n = Not (c)\nh = Where (n, zero, z)"), THRESHOLD), 1, []),
    "far from its MatMul, behind unlisted operators": (
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
    "a scaled ReLU": (
        lambda: model("z = MatMul (x, w_up)\nr = Relu (z)\nh = Mul (r, two)\ny = MatMul (h, w_down)"),
        0,
        ["unsupported nodes next to the ReLU: Mul '/mlp/Mul_h'"],
    ),
    "a scaled gate": (
        lambda: model(GATED.replace("a = Relu (z)", "r = Relu (z)\na = Mul (two, r)")),
        0,
        ["unsupported nodes next to the ReLU: Mul '/mlp/Mul_a'"],
    ),
    "a ReLU in float16 and back": (
        lambda: model(
            "z = MatMul (x, w_up)\nr = Relu (z)\ni = Cast <to = 10> (r)\nh = Cast <to = 1> (i)\ny = MatMul (h, w_down)"
        ),
        0,
        ["unsupported nodes next to the ReLU: Cast '/mlp/Cast_i', Cast '/mlp/Cast_h'"],
    ),
    "silu": (
        lambda: model(
            "z = MatMul (x, w_gate)\nu = MatMul (x, w_up)\ns = Sigmoid (z)\na = Mul (z, s)\n"
            "h = Mul (a, u)\ny = MatMul (h, w_down)"
        ),
        0,
        ["gate is Silu, not a ReLU"],
    ),
    "no FFN": (lambda: model("y = Relu (x)"), 0, []),
}
