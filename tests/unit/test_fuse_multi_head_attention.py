"""Attention of encoders and encoder-decoders becomes MultiHeadAttention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.graphs import evaluate, graph_of, ops

from graph_passes.fuse_multi_head_attention import FuseMultiHeadAttentionPass

HEADS, DIM, QUERIES, KEYS = 4, 8, 3, 5
ATTENTION = """q2 = Reshape (x, split)
q = Transpose <perm = [0, 2, 1, 3]> (q2)
k2 = Reshape (m, split)
k = Transpose <perm = [0, 2, 1, 3]> (k2)
v2 = Reshape (m, split)
v = Transpose <perm = [0, 2, 1, 3]> (v2)
turned = Transpose <perm = [0, 1, 3, 2]> (k)
scores = MatMul (q, turned)
scaled = Mul (scores, scale)
near = Add (scaled, relative)
masked = Add (near, bias)
weights = Softmax (masked)
mixed = MatMul (weights, v)
heads = Transpose <perm = [0, 2, 1, 3]> (mixed)
y = Reshape (heads, flat)"""
RNG = np.random.default_rng(0)
CONSTANTS = {
    "split": np.array([0, 0, HEADS, DIM]),
    "flat": np.array([0, 0, HEADS * DIM]),
    "scale": np.float32(0.3),
    "relative": RNG.standard_normal((1, HEADS, QUERIES, KEYS)).astype(np.float32),
    "w": np.ones((1, 1, 1, 1), np.float32),
}
FEEDS: dict[str, NDArray[np.generic]] = {
    "x": RNG.standard_normal((2, QUERIES, HEADS * DIM)).astype(np.float32),
    "m": RNG.standard_normal((2, KEYS, HEADS * DIM)).astype(np.float32),
    "bias": np.where(np.arange(KEYS) < [[[[KEYS]]], [[[2]]]], 0, -3e38).astype(np.float32),  # padding
}
SHAPES = {"q": "s", "k": "t", "v": "t", "keys": "t", "values": "t"}  # length
CACHED = [
    (
        "turned = Transpose <perm = [0, 1, 3, 2]> (k)",
        "keys = Concat <axis = 2> (k)\nturned = Transpose <perm = [0, 1, 3, 2]> (keys)",
    ),
    ("mixed = MatMul (weights, v)", "values = Concat <axis = 2> (v)\nmixed = MatMul (weights, values)"),
]
UNBIASED = [
    ("near = Add (scaled, relative)", ""),
    ("masked = Add (near, bias)", "masked = Identity (scaled)"),
    ("Softmax (masked)", "Softmax (scaled)"),
]
FUSED: dict[str, list[tuple[str, str]]] = {
    "two biases": [],
    "one": [("near = Add (scaled, relative)\n", ""), ("Add (near, bias)", "Add (bias, scaled)")],
    "none": UNBIASED,
    "keys and values from a cache": CACHED,
    "keys split into heads and transposed at once": [
        ("turned = Transpose <perm = [0, 1, 3, 2]> (k)", "turned = Transpose <perm = [0, 2, 3, 1]> (k2)")
    ],
}
OTHERS = {
    "the scores are not a MatMul of queries and keys": [
        ("near = Add (scaled,", "capped = Tanh (scaled)\nnear = Add (capped,")
    ],
    "the attention weights are used outside the MatMul with the values": [
        ("heads = ", "extra = ReduceSum (weights)\nheads = ")
    ],
    "the heads are not merged by Transpose and Reshape": [
        ("heads = Transpose <perm = [0, 2, 1, 3]>", "heads = Transpose <perm = [0, 1, 2, 3]>")
    ],
    "the keys are not transposed": [("(q, turned)", "(q, w)")],
}


def attention(changes: list[tuple[str, str]]) -> ir.Model:
    nodes = ATTENTION
    for old, new in changes:
        assert old in nodes
        nodes = nodes.replace(old, new)
    width = HEADS * DIM
    model = graph_of(
        nodes,
        f"float[b, s, {width}] x, float[b, t, {width}] m, float[b, 1, 1, t] bias",
        f"float[b, s, {width}] y",
        **CONSTANTS,
    )
    for node in model.graph:  # the exporter's shapes have them; inference does not follow the constants
        name = str(node.outputs[0].name)
        if name == "turned":
            node.outputs[0].shape = ir.Shape(["b", HEADS, DIM, "t"])
        if name in SHAPES:
            node.outputs[0].shape = ir.Shape(["b", HEADS, SHAPES[name], DIM])
    return model


@pytest.mark.parametrize("changes", FUSED.values(), ids=FUSED)
def test_fuses(changes: list[tuple[str, str]]) -> None:
    model = attention(changes)
    expected = evaluate(model, **FEEDS)[0]
    reasons: list[str] = []
    assert FuseMultiHeadAttentionPass(reasons)(model).modified, reasons
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert reasons == []
    assert not {"Softmax", "MatMul"} & set(ops(model))
    (node,) = (node for node in model.graph if node.op_type == "MultiHeadAttention")
    assert node.attributes.get_float("scale", 0.0) == pytest.approx(0.3)
    assert node.inputs[1] is not None
    rank = 4 if changes is CACHED else 3
    assert node.inputs[1].shape is not None
    assert node.inputs[1].shape.rank() == rank
    np.testing.assert_allclose(evaluate(model, **FEEDS)[0], expected, rtol=0, atol=1e-5)
    assert not FuseMultiHeadAttentionPass()(model).modified


@pytest.mark.parametrize(("reason", "changes"), OTHERS.items(), ids=OTHERS)
def test_leaves_other_attention_alone(reason: str, changes: list[tuple[str, str]]) -> None:
    model = attention(changes)
    before = ops(model)
    reasons: list[str] = []
    assert not FuseMultiHeadAttentionPass(reasons)(model).modified
    assert reasons == [f"attention weights: {reason}"]
    assert ops(model) == before
