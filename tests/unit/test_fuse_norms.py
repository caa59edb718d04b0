"""RMSNorm after a residual addition."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from support.graphs import evaluate, graph_of, ops

from graph_passes import FuseSkipRmsNormPass

NORM = """p = Pow ({0}, two)
m = ReduceMean <keepdims = 1, noop_with_empty_axes = 0> (p, axes)
e = Add (m, eps)
r = Sqrt (e)
i = Reciprocal (r)
n = Mul ({0}, i)
y = Mul (w, n)"""
CONSTANTS = {
    "two": np.float32(2.0),
    "axes": np.array([-1]),
    "eps": np.float32(1e-5),
    "w": np.linspace(1, 2, 8, dtype=np.float32),
}
A, B = np.random.default_rng(0).standard_normal((2, 2, 3, 8)).astype(np.float32)


def norm(first: str, source: str, norm: str = NORM) -> ir.Model:
    inputs = "float[b, s, 8] a, float[b, s, 8] c"
    nodes = f"{first}\n{norm.format(source)}"
    return graph_of(nodes, inputs, "float[b, s, 8] y", **CONSTANTS)


def test_fuses_the_addition_before_it() -> None:
    model = norm("x = Add (a, c)", "x")
    expected = evaluate(model, a=A, c=B)[0]
    assert FuseSkipRmsNormPass()(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert ops(model) == ["SkipSimplifiedLayerNormalization"]
    assert model.opset_imports["com.microsoft"] == 1
    np.testing.assert_allclose(evaluate(model, a=A, c=B)[0], expected, rtol=0, atol=1e-5)
    assert not FuseSkipRmsNormPass()(model).modified


def test_a_norm_without_an_addition_stays_standard_onnx() -> None:
    model = norm("x = Mul (a, c)", "x")
    expected = evaluate(model, a=A, c=B)[0]
    assert not FuseSkipRmsNormPass()(model).modified
    assert {node.domain for node in model.graph} == {""}
    assert "SimplifiedLayerNormalization" not in ops(model)
    np.testing.assert_allclose(evaluate(model, a=A, c=B)[0], expected, rtol=0, atol=1e-5)


def test_leaves_layer_norm_alone() -> None:
    model = norm("x = Add (a, c)", "x", "y = LayerNormalization ({0}, w)")
    assert not FuseSkipRmsNormPass()(model).modified
    assert ops(model) == ["Add", "LayerNormalization"]
