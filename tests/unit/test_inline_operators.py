"""Decomposition of our operators into standard ONNX."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import D_MODEL, evaluate, ffn_graph, graph_of, ops

from graph_passes import FfnFormat, FuseLinearPass, FuseSparseFfnPass, InlineOperatorsPass

X = np.random.default_rng(0).standard_normal((2, 3, D_MODEL)).astype(np.float32)
RELU = "a = Relu (z)\nh = Mul (a, u)"
DRELU = "a = Relu (z)\nv = Relu (u)\nh = Mul (a, v)"
SILU = "g = Sigmoid (z)\ns = Mul (g, z)\nn = Abs (s)\nc = LessOrEqual (n, t)\na = Where (c, zero, s)\nh = Mul (a, u)"


@pytest.mark.parametrize("weights", ["f32", "f16", "i8", "i4", "nl4i8"])
@pytest.mark.parametrize("nodes", [RELU, DRELU, SILU], ids=["relu", "drelu", "silu"])
def test_the_body_replaces_the_operator(nodes: str, weights: FfnFormat) -> None:
    model = ffn_graph(nodes)
    FuseSparseFfnPass(weights=weights)(model)
    expected = evaluate(model, x=X)[0]
    assert InlineOperatorsPass()(model).modified
    assert {node.domain for node in model.graph} == {""}
    assert not {"Equal", "BitwiseAnd", "BitShift"} & set(ops(model))
    assert not model.functions
    assert "com.prosparse" not in model.opset_imports
    np.testing.assert_array_equal(evaluate(model, x=X)[0], expected)
    assert not InlineOperatorsPass()(model).modified


def test_linear_layers_too() -> None:
    weight = np.random.default_rng(1).standard_normal((D_MODEL, 5)).astype(np.float32)
    model = graph_of("y = MatMul (x, w)", f"float[b, s, {D_MODEL}] x", "float[b, s, 5] y", w=weight)
    FuseLinearPass("i4")(model)
    assert ops(model) == ["LinearI4"]
    expected = evaluate(model, x=X)[0]
    assert InlineOperatorsPass()(model).modified
    assert {node.domain for node in model.graph} == {""}
    np.testing.assert_array_equal(evaluate(model, x=X)[0], expected)


def test_leaves_other_graphs_alone() -> None:
    model = ffn_graph(RELU)
    before = ops(model)
    assert not InlineOperatorsPass()(model).modified
    assert ops(model) == before
