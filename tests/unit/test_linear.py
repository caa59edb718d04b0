"""Which nodes are a linear layer, with which weight, orientation and bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of, set_module

from graph_passes.patterns.linear import (
    SCOPES,
    Linear,
    constant_array,
    find_linears,
    module_scope,
    scalar_constant,
    unscaled,
)

IN, OUT = 3, 5
W = np.arange(IN * OUT, dtype=np.float32).reshape(IN, OUT)
CONSTANTS = {"w": W, "v": W.T.copy(), "b": np.ones(OUT, np.float32), "b2": np.ones((1, OUT), np.float32)}
CONSTANTS |= {
    "rows": np.ones((2, OUT), np.float32),
    "b4": np.ones((1, 1, 1, OUT), np.float32),
    "one": np.ones(1, np.float32),
}
# nodes: (input-major, bias, name of the output)
LAYERS = {
    "y = MatMul (x, w)": (True, None, "y"),
    "t = Transpose (v)\ny = MatMul (x, t)": (False, None, "y"),
    "m = MatMul (x, w)\ny = Add (m, b)": (True, "b", "y"),
    "m = MatMul (x, w)\ny = Add (b2, m)": (True, "b2", "y"),
    "m = MatMul (x, w)\ny = Add (m, b4)": (True, None, "m"),
    "m = MatMul (x, w)\ny = Add (m, rows)": (True, None, "m"),
    "m = MatMul (x, w)\ny = Add (m, one)": (True, None, "m"),
    "m = MatMul (x, w)\na = Add (m, b)\ny = Add (a, m)": (True, None, "m"),
    "y = Gemm (x, w)": (True, None, "y"),
    "y = Gemm <transB = 1> (x, v, b)": (False, "b", "y"),
    "m = Gemm (x, w)\ny = Add (m, b)": (True, "b", "y"),
}
OTHERS = [
    "y = MatMul (w, x2)",
    "y = Gemm <alpha = 2.0> (x, w)",
    "y = Gemm <beta = 2.0> (x, w, b)",
    "y = Gemm (x, w, one)",
    "y = Gemm <transA = 1> (x2, w)",
    "c = Relu (w)\ny = MatMul (x, c)",
]


def graph(nodes: str) -> ir.Graph:
    return graph_of(nodes, f"float[n, {IN}] x, float[{IN}, {IN}] x2", f"float[n, {OUT}] y", **CONSTANTS).graph


def only(nodes: str) -> Linear:
    (linear,) = find_linears(graph(nodes)).values()
    return linear


@pytest.mark.parametrize("nodes", LAYERS)
def test_layers(nodes: str) -> None:
    linear = only(nodes)
    in_major, bias, output = LAYERS[nodes]
    assert (linear.in_major, linear.bias and linear.bias.name, linear.output.name) == (in_major, bias, output)
    assert (linear.x.name, linear.d_in, linear.d_out) == ("x", IN, OUT)
    assert linear.matmul.op_type in ("MatMul", "Gemm")
    matrix = linear.weight.read()
    np.testing.assert_array_equal(matrix if in_major else matrix.T, W)


@pytest.mark.parametrize("nodes", OTHERS)
def test_other_nodes(nodes: str) -> None:
    assert find_linears(graph(nodes)) == {}


def test_module_paths() -> None:
    model = graph_of("y = MatMul (x, w)", f"float[n, {IN}] x", f"float[n, {OUT}] y", **CONSTANTS)
    node = model.graph[0]
    assert module_scope(node) == ""
    set_module(model, y="model.layers.slice(None, 2, None).0.mlp.up_proj")
    assert module_scope(node) == "model.layers.0.mlp.up_proj"
    assert next(iter(find_linears(model.graph).values())).module == "model.layers.0.mlp.up_proj"
    for damaged in ("['one']", "[", "7"):
        node.metadata_props[SCOPES] = damaged
        assert module_scope(node) == ""


def test_small_constants() -> None:
    values = graph("y = MatMul (x, w)").initializers
    np.testing.assert_array_equal(constant_array(values["w"]), W)
    assert constant_array(values["w"], most=W.size - 1) is None
    assert constant_array(None) is None
    assert (scalar_constant(values["one"]), scalar_constant(values["b"])) == (1.0, None)


def test_a_scale_is_split_off() -> None:
    scaled = graph_of("y = Mul (c, x)", "float[n] x", "float[n] y", c=np.float32(0.5)).graph
    assert unscaled(scaled.outputs[0]) == (scaled.inputs[0], 0.5)
    other = graph_of("y = Mul (x, x)", "float[n] x", "float[n] y").graph
    assert unscaled(other.outputs[0]) == (other.outputs[0], 1.0)
