"""Rotary position embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate, graph_of, ops

from graph_passes import FuseRotaryEmbeddingPass

ROPE = """a = Concat <axis = -1> (angles, angles)
c = Cos (a)
s = Sin (a)
cos = Unsqueeze (c, one)
sin = Unsqueeze (s, one)
low = Slice (t, zero, half, last)
high = Slice (t, half, end, last)
negated = Neg (high)
rotated = Concat <axis = -1> (negated, low)
straight = Mul (t, cos)
crossed = Mul (rotated, sin)
y = Add (straight, crossed)"""
CONSTANTS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "half": np.array([4]),
    "six": np.array([6]),
    "end": np.array([2**62]),
    "last": np.array([3]),
    "scale": np.float32(1.5),
}
RNG = np.random.default_rng(0)
T = RNG.standard_normal((2, 3, 5, 8)).astype(np.float32)
ANGLES = RNG.standard_normal((2, 5, 4)).astype(np.float32)


def rope(*changes: tuple[str, str]) -> ir.Model:
    nodes = ROPE
    for old, new in changes:
        assert old in nodes
        nodes = nodes.replace(old, new)
    return graph_of(nodes, "float[b, 3, s, 8] t, float[b, s, 4] angles", "float[b, 3, s, 8] y", **CONSTANTS)


SAME = {
    "as transformers writes it": (),
    "operands swapped": (("Add (straight, crossed)", "Add (crossed, straight)"), ("Mul (t, cos)", "Mul (cos, t)")),
    "scaled, as in YaRN": (("c = Cos (a)", "c0 = Cos (a)\nc = Mul (c0, scale)"),),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_fuses(changes: tuple[tuple[str, str], ...]) -> None:
    model = rope(*changes)
    expected = evaluate(model, t=T, angles=ANGLES)[0]
    assert FuseRotaryEmbeddingPass()(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert ops(model).count("RotaryEmbedding") == 1
    assert not {"Neg", "Add"} & set(ops(model))
    assert {"Cos", "Sin"} <= set(ops(model))  # the cache, a row per token
    assert model.opset_imports["com.microsoft"] == 1
    np.testing.assert_allclose(evaluate(model, t=T, angles=ANGLES)[0], expected, rtol=0, atol=1e-5)
    assert not FuseRotaryEmbeddingPass()(model).modified


DIFFERENT = {
    "not negated": (("Neg (high)", "Identity (high)"),),
    "halves in order": (("(negated, low)", "(low, negated)"),),
    "halves of different angles": (("(angles, angles)", "(angles, other)"), ("a = ", "other = Neg (angles)\na = ")),
    "another part of the head": (("low = Slice (t, zero, half, last)", "low = Slice (t, two, six, last)"),),
    "sines in place of cosines": (("Cos (a)", "Sin (a)"),),
    "a difference": (("y = Add", "y = Sub"),),
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT)
def test_leaves_other_arithmetic_alone(changes: tuple[tuple[str, str], ...]) -> None:
    model = rope(*changes)
    before = ops(model)
    assert not FuseRotaryEmbeddingPass()(model).modified
    assert ops(model) == before
