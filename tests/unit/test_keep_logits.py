"""The input ``logits_to_keep``: which graphs get it, and what it does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate, graph_of, ops

from graph_passes import KeepLogitsPass

HEAD = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
HIDDEN = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)


def head(nodes: str, output: str = "logits") -> ir.Model:
    return graph_of(nodes, "float[b, s, 8] x", f"float[b, s, 5] {output}", w=HEAD, b=HEAD[0], half=np.float32(0.5))


@pytest.mark.parametrize(
    "nodes",
    [
        "logits = MatMul (x, w)",
        "z = MatMul (x, w)\nlogits = Add (z, b)",
        "z = MatMul (x, w)\ns = Mul (z, half)\nt = Tanh (s)\nlogits = Div (t, half)",  # capped
    ],
)
def test_slices_the_hidden_state_before_lm_head(nodes: str) -> None:
    model = head(nodes)
    before, expected = ops(model), evaluate(model, x=HIDDEN)[0]
    assert KeepLogitsPass()(model).modified
    assert ops(model) == ["Neg", "Slice", *before]
    assert [value.name for value in model.graph.inputs] == ["x", "logits_to_keep"]
    np.testing.assert_array_equal(evaluate(model, x=HIDDEN)[0], expected)  # the default is 0: all
    for keep in (0, 1, 3, 4):
        actual = evaluate(model, x=HIDDEN, logits_to_keep=np.array([keep]))[0]
        np.testing.assert_allclose(actual, expected[:, -keep:], rtol=0, atol=1e-5)
    assert str(model.graph.outputs[0].shape[1]) == "logits"


def test_adds_the_input_once() -> None:
    model = head("logits = MatMul (x, w)")
    KeepLogitsPass()(model)
    before = ops(model)
    assert not KeepLogitsPass()(model).modified
    assert ops(model) == before


@pytest.mark.parametrize(
    ("nodes", "output"),
    [
        ("y = MatMul (x, w)", "y"),  # not a causal LM
        ("z = MatMul (x, w)\nlogits = Softmax (z)", "logits"),  # not elementwise
    ],
)
def test_leaves_other_graphs_alone(nodes: str, output: str) -> None:
    model = head(nodes, output)
    before = ops(model)
    assert not KeepLogitsPass()(model).modified
    assert ops(model) == before
    assert [value.name for value in model.graph.inputs] == ["x"]
