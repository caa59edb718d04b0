"""Attention with a KV cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.graphs import evaluate, graph_of, ops

from graph_passes import FuseGroupQueryAttentionPass

HEADS, KV_HEADS, DIM, WIDTH, VOCAB = 4, 2, 8, 12, 5
# Embeddings stand for projections; the queries' scale is on one factor, as transformers exports it.
ATTENTION = """rows = Unsqueeze (position_ids, minus_one)
last = ReduceMax <keepdims = 0> (position_ids)
count = Add (last, one)
columns = Range (zero, count, one)
causal = LessOrEqual (columns, rows)
real = Cast <to = 9> (attention_mask)
seen = Unsqueeze (real, middle)
both = And (causal, seen)
wide = Unsqueeze (both, middle)
bias = Where (wide, nothing, lowest)
learned = Gather (w_position, position_ids)
tokens = Gather (w_q, input_ids)
q1 = Add (tokens, learned)
k1 = Gather (w_k, input_ids)
v1 = Gather (w_v, input_ids)
q2 = Reshape (q1, q_shape)
k2 = Reshape (k1, kv_shape)
v2 = Reshape (v1, kv_shape)
q = Transpose <perm = [0, 2, 1, 3]> (q2)
k = Transpose <perm = [0, 2, 1, 3]> (k2)
v = Transpose <perm = [0, 2, 1, 3]> (v2)
keys = Concat <axis = 2> (past_k, k)
values = Concat <axis = 2> (past_v, v)
keys5 = Unsqueeze (keys, two)
values5 = Unsqueeze (values, two)
keys5e = Expand (keys5, repeat)
values5e = Expand (values5, repeat)
keys4 = Reshape (keys5e, merged)
values4 = Reshape (values5e, merged)
turned = Transpose <perm = [0, 1, 3, 2]> (keys4)
scaled = Mul (q, scale)
scores = MatMul (scaled, turned)
masked = Add (scores, bias)
weights = Softmax (masked)
mixed = MatMul (weights, values4)
heads = Transpose <perm = [0, 2, 1, 3]> (mixed)
hidden = Reshape (heads, flat)
logits = MatMul (hidden, w_head)"""
RNG = np.random.default_rng(0)
CONSTANTS = {
    "minus_one": np.array([-1]),
    "middle": np.array([1]),
    "two": np.array([2]),
    "zero": np.int64(0),
    "one": np.int64(1),
    "nothing": np.float32(0),
    "lowest": np.float32(-3e38),
    "scale": np.float32(0.25),
    "q_shape": np.array([0, 0, HEADS, DIM]),
    "kv_shape": np.array([0, 0, KV_HEADS, DIM]),
    "repeat": np.array([1, 1, HEADS // KV_HEADS, 1, 1]),
    "merged": np.array([0, HEADS, -1, DIM]),
    "flat": np.array([0, 0, HEADS * DIM]),
    "w_q": RNG.standard_normal((VOCAB, HEADS * DIM)).astype(np.float32),
    "w_position": RNG.standard_normal((8, HEADS * DIM)).astype(np.float32),
    "w_k": RNG.standard_normal((VOCAB, KV_HEADS * DIM)).astype(np.float32),
    "w_v": RNG.standard_normal((VOCAB, KV_HEADS * DIM)).astype(np.float32),
    "w_head": RNG.standard_normal((HEADS * DIM, WIDTH)).astype(np.float32),
}
CACHE = f"[b, {KV_HEADS}, {{}}, {DIM}]"


def attention(*changes: tuple[str, str], **constants: NDArray[np.generic]) -> ir.Model:
    nodes = ATTENTION
    for old, new in changes:
        assert old in nodes
        nodes = nodes.replace(old, new)
    past, total = CACHE.format("p"), CACHE.format("t")
    ids = "int64[b, s] input_ids, int64[b, t] attention_mask, int64[b, s] position_ids"
    model = graph_of(
        nodes,
        f"{ids}, float{past} past_k, float{past} past_v",
        f"float[b, s, {WIDTH}] logits, float{total} keys, float{total} values",
        **{**CONSTANTS, **constants},
    )
    for node in model.graph:  # the exporter's shapes have it; inference does not follow the constants
        if node.outputs[0].name == "q":
            node.outputs[0].shape = ir.Shape(["b", HEADS, "s", DIM])
    return model


def feeds(mask: list[list[int]]) -> dict[str, NDArray[np.generic]]:
    kept = np.array(mask)
    empty = np.zeros((len(kept), KV_HEADS, 0, DIM), np.float32)
    return {
        "input_ids": np.random.default_rng(1).integers(0, VOCAB, kept.shape),
        "attention_mask": kept,
        "position_ids": np.tile(np.arange(kept.shape[1]), (len(kept), 1)),
        "past_k": empty,
        "past_v": empty,
    }


@pytest.mark.parametrize("mask", [[[1, 1, 1]], [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]], ids=["one row", "padded"])
def test_fuses(mask: list[list[int]]) -> None:
    model = attention()
    expected = evaluate(model, **feeds(mask))[0]
    reasons: list[str] = []
    assert FuseGroupQueryAttentionPass(reasons)(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert reasons == []
    (node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": 0.25}
    assert not {"Softmax", "LessOrEqual"} & set(ops(model))
    assert ops(model).count("MatMul") == 1  # lm_head
    assert ops(model).count("GatherElements") == 2  # input_ids and position_ids, left-aligned
    assert ops(model).count("GatherND") == 1  # the hidden state, restored
    actual = evaluate(model, **feeds(mask))[0]
    real = np.array(mask) == 1
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=1e-4)
    assert not FuseGroupQueryAttentionPass()(model).modified


WINDOW = [
    ("seen = Unsq", "first = Sub (rows, window)\nnear = Greater (columns, first)\nseen = Unsq"),
    ("both = And (causal, seen)", "here = And (causal, near)\nboth = And (here, seen)"),
]


def assert_fused(model: ir.Model, mask: list[list[int]]) -> ir.Node:
    """Assert that attention is fused, with the same logits; return the operator."""
    expected = evaluate(model, **feeds(mask))[0]
    reasons: list[str] = []
    assert FuseGroupQueryAttentionPass(reasons)(model).modified, reasons
    ir.passes.common.RemoveUnusedNodesPass()(model)
    actual = evaluate(model, **feeds(mask))[0]
    real = np.array(mask) == 1
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=1e-4)
    (node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    return node


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_sliding_window_becomes_an_attribute(window: int) -> None:
    model = attention(*WINDOW, window=np.int64(window))
    node = assert_fused(model, [[1] * 6, [0, 0, 1, 1, 1, 1]])
    assert node.attributes.get_int("local_window_size", -1) == window


CAPPED = """router = MatMul (hidden, w_head)
expert = Softmax (router)
largest = ReduceMax <keepdims = 1> (expert, minus_one)
mixture = Add (hidden, largest)
l1 = MatMul (mixture, w_head)
l2 = Div (l1, scale)
l3 = Tanh (l2)
logits = Mul (l3, scale)"""


def test_capped_logits_a_router_and_a_reshape_before_the_heads_are_merged() -> None:
    merge = "heads = Transpose <perm = [0, 2, 1, 3]> ({})"
    model = attention(
        (merge.format("mixed"), f"same = Reshape (mixed, q_merged)\n{merge.format('same')}"),
        ("logits = MatMul (hidden, w_head)", CAPPED),
        q_merged=np.array([0, HEADS, -1, DIM]),
    )
    shapes = {"mixed": ["b", HEADS, "s", DIM], "same": ["b", HEADS, "s", DIM], "expert": ["b", "s", WIDTH]}
    for node in model.graph:
        if node.outputs[0].name in shapes:
            node.outputs[0].shape = ir.Shape(shapes[node.outputs[0].name])
    assert_fused(model, [[1] * 4, [0, 1, 1, 1]])


NOT_FUSED = {
    "another comparison": (
        [
            ("seen = Unsq", "near = Greater (columns, rows)\nseen = Unsq"),
            ("both = And (causal, seen)", "here = And (causal, near)\nboth = And (here, seen)"),
        ],
        "its mask is not limited to causality, padding and a sliding window: expected 1 comparison, got 2",
    ),
    "no padding": (
        [("both = And (causal, seen)", "both = Identity (causal)")],
        "its mask is not limited to causality, padding and a sliding window: expected 1 comparison, got 1",
    ),
    "a positional bias": (
        [("bias = Where", "b0 = Where"), ("tokens = ", "bias = Add (b0, slopes)\ntokens = ")],
        "its mask contains weights",
    ),
    "no mask": ([("Softmax (masked)", "Softmax (scores)")], "no mask is added to the scores"),
    "no MatMul": (
        [("masked = Add (scores", "capped = Tanh (scores)\nmasked = Add (capped")],
        "the scores are not a MatMul of queries and keys",
    ),
    "no cache": (
        [("keys = Concat <axis = 2> (past_k, k)", "keys = Identity (k)")],
        "keys or values are not a Concat of a cache input and new entries",
    ),
    "weights used twice": (
        [("heads = ", "extra = ReduceSum (weights)\nheads = ")],
        "the attention weights are used outside the MatMul with the values",
    ),
    "heads not merged": (
        [("heads = Transpose <perm = [0, 2, 1, 3]> (mixed)", "heads = Transpose <perm = [0, 1, 2, 3]> (mixed)")],
        "the heads are not merged by Transpose and Reshape",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), NOT_FUSED.values(), ids=NOT_FUSED)
def test_leaves_other_attention_alone(changes: list[tuple[str, str]], reason: str) -> None:
    model = attention(*changes, slopes=np.ones((1, HEADS, 1, 1), np.float32))
    before = ops(model)
    reasons: list[str] = []
    assert not FuseGroupQueryAttentionPass(reasons)(model).modified
    assert reasons == [f"attention weights: {reason}"]
    assert ops(model) == before


def test_leaves_graphs_without_attention_alone() -> None:
    model = graph_of("y = MatMul (x, x)", "float[3, 3] x", "float[3, 3] y")
    reasons: list[str] = []
    assert not FuseGroupQueryAttentionPass(reasons)(model).modified
    assert reasons == []
