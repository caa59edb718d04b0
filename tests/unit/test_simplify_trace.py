"""Constant folding after tracing, and what it leaves to later."""

from __future__ import annotations

import numpy as np
from support.graphs import graph_of, ops, set_module

from graph_passes.simplify_trace import merge_equal, simplify_trace


def norm_weight() -> tuple[str, str, str]:
    return "w1 = Add (w, one)\ny = Mul (x, w1)", "float[b, 4] x", "float[b, 4] y"


def test_constants_are_folded() -> None:
    model = graph_of(*norm_weight(), w=np.arange(4, dtype=np.float32), one=np.float32(1.0))
    simplify_trace(model)
    assert ops(model) == ["Mul"]
    weight = next(iter(model.graph)).inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), [1.0, 2.0, 3.0, 4.0])


def test_a_node_that_must_stay() -> None:
    model = graph_of(*norm_weight(), w=np.arange(4, dtype=np.float32), one=np.float32(1.0))
    simplify_trace(model, lambda node: node.op_type == "Add")
    assert ops(model) == ["Add", "Mul"]
    simplify_trace(model)
    assert ops(model) == ["Mul"]


def test_equal_nodes_and_constants_become_one() -> None:
    model = graph_of(
        "a = Mul (x, one)\nb = Mul (x, other)\ny = Add (a, b)",
        "float[n, 4] x",
        "float[n, 4] y",
        one=np.float32(3.0),
        other=np.float32(3.0),
    )
    merge_equal(model)
    assert ops(model) == ["Mul", "Add"]
    assert len(model.graph.initializers) == 1


def test_sizes_come_from_the_first_input_that_has_them() -> None:
    model = graph_of(
        "n = Shape <start = 1, end = 2> (b)\nm = Shape <start = 0, end = 1> (b)\ny = Concat <axis = 0> (n, m)",
        "float[s1, s2] a, float[s3, s1] b",
        "int64[2] y",
    )
    simplify_trace(model)
    shapes = [node for node in model.graph if node.op_type == "Shape"]
    assert [node.inputs[0].name for node in shapes if node.inputs[0]] == ["a", "b"]
    assert [(node.attributes["start"].as_int(), node.attributes["end"].as_int()) for node in shapes] == [(0, 1), (0, 1)]


def test_module_paths_are_those_of_the_model() -> None:
    model = graph_of("y = Relu (x)", "float[n] x", "float[n] y")
    set_module(model, y="model.layers.slice(None, 30, None).1.mlp")
    simplify_trace(model)
    node = next(iter(model.graph))
    assert node.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'model.layers.1.mlp', 'linear']"
