"""The q, k and v projections in one MatMul, and RoPE inside attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.graphs import evaluate, graph_of, ops, set_module

from graph_passes import PackQkvPass

HEADS, KV_HEADS, DIM, LONGEST = 4, 2, 16, 32
WIDTH = HEADS * DIM
GQA = "GroupQueryAttention <num_heads = 4, kv_num_heads = 2, scale = 0.25>"
PROJECTIONS = "q = MatMul (x, w_q)\nk = MatMul (x, w_k)\nv = MatMul (x, w_v)\n"
ATTENTION = f"y, key, value = com.microsoft.{GQA} (q, k, v, past_k, past_v, seqlens, total)"
ROPE = """p = Cast <to = 1> (position_ids)
pu = Unsqueeze (p, minus_one)
angles = Mul (pu, frequencies)
both = Concat <axis = -1> (angles, angles)
cos = Cos (both)
sin = Sin (both)
half_cos = Slice (cos, zero, half, minus_one)
half_sin = Slice (sin, zero, half, minus_one)
flat_cos = Reshape (half_cos, flat)
flat_sin = Reshape (half_sin, flat)
"""
ROTATE = f"""rq = com.microsoft.RotaryEmbedding (q, rows, flat_cos, flat_sin)
rk = com.microsoft.RotaryEmbedding (k, rows, flat_cos, flat_sin)
y, key, value = com.microsoft.{GQA} (rq, rk, v, past_k, past_v, seqlens, total)"""
RNG = np.random.default_rng(0)
CONSTANTS = {
    "w_q": RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8,
    "w_k": RNG.standard_normal((WIDTH, KV_HEADS * DIM)).astype(np.float32) / 8,
    "w_v": RNG.standard_normal((WIDTH, KV_HEADS * DIM)).astype(np.float32) / 8,
    "b_k": RNG.standard_normal(KV_HEADS * DIM).astype(np.float32),
    "minus_one": np.array([-1]),
    "zero": np.array([0]),
    "half": np.array([DIM // 2]),
    "flat": np.array([-1, DIM // 2]),
    "frequencies": (100.0 ** -np.linspace(0, 1, DIM // 2)).astype(np.float32),
    "two": np.float32(2),
    "rows": np.arange(3)[None],
}
FEEDS: dict[str, NDArray[np.generic]] = {
    "x": RNG.standard_normal((1, 3, WIDTH)).astype(np.float32),
    "position_ids": np.arange(3)[None],
    "past_k": np.zeros((1, KV_HEADS, 0, DIM), np.float32),
    "past_v": np.zeros((1, KV_HEADS, 0, DIM), np.float32),
    "seqlens": np.array([2], np.int32),
    "total": np.array(3, np.int32),
}


def attention(nodes: str, *changes: tuple[str, str], named: str = "qkv") -> ir.Model:
    for old, new in changes:
        assert old in nodes
        nodes = nodes.replace(old, new)
    cache = f"[1, {KV_HEADS}, p, {DIM}]"
    model = graph_of(
        nodes,
        f"float[1, s, {WIDTH}] x, int64[1, s] position_ids, float{cache} past_k, float{cache} past_v, "
        "int32[1] seqlens, int32 total",
        f"float[1, s, {WIDTH}] y, float{cache.replace('p', 't')} key, float{cache.replace('p', 't')} value",
        imports=', "com.microsoft" : 1',
        **CONSTANTS,
    )
    return set_module(model, **{part: f"layers.0.self_attn.{part}_proj" for part in named})


def packed(model: ir.Model, positions: int | None = LONGEST) -> bool:
    modified = PackQkvPass(positions)(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return modified


@pytest.mark.parametrize(
    "changes",
    [(), (("k = MatMul (x, w_k)", "k0 = MatMul (x, w_k)\nk = Add (k0, b_k)"),)],
    ids=["no biases", "a bias"],
)
def test_packs_the_projections(changes: tuple[tuple[str, str], ...]) -> None:
    model = set_module(attention(PROJECTIONS + ATTENTION, *changes), k0="layers.0.self_attn.k_proj")
    expected = evaluate(model, **FEEDS)
    assert packed(model)
    assert ops(model) == ["MatMul", *(["Add"] if changes else []), "GroupQueryAttention"]
    name = "layers.0.self_attn.q_proj+k_proj+v_proj"
    matrix = model.graph.initializers[f"{name}.weight_t"].const_value.numpy()
    np.testing.assert_array_equal(matrix, np.concatenate([CONSTANTS[f"w_{part}"] for part in "qkv"], 1))
    assert (f"{name}.bias" in model.graph.initializers) == bool(changes)
    for actual, wanted in zip(evaluate(model, **FEEDS), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4)
    assert not packed(model)


def test_moves_rope_into_attention() -> None:
    model = attention(PROJECTIONS + ROPE + ROTATE)
    expected = evaluate(model, **FEEDS)
    assert packed(model)
    assert ops(model) == ["MatMul", "GroupQueryAttention"]
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert node.attributes.get_int("do_rotary", 0) == 1
    assert [tuple(value.shape or ()) for value in node.inputs[-2:]] == [(LONGEST, DIM // 2)] * 2
    for actual, wanted in zip(evaluate(model, **FEEDS), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4)


def test_scaled_queries_change_the_operators_scale() -> None:
    model = attention(
        PROJECTIONS + ATTENTION, ("(q, k, v", "(scaled, k, v"), ("k = MatMul", "scaled = Mul (q, two)\nk = MatMul")
    )
    expected = evaluate(model, **FEEDS)
    assert packed(model)
    assert ops(model) == ["MatMul", "GroupQueryAttention"]
    assert next(n for n in model.graph if n.op_type != "MatMul").attributes.get_float("scale", 0.0) == 0.5
    np.testing.assert_allclose(evaluate(model, **FEEDS)[0], expected[0], rtol=0, atol=1e-4)


SCALED_POSITIONS = "p0 = Cast <to = 1> (position_ids)\nm = ReduceMax (p0)\np = Mul (p0, m)"
NOT_PACKED = {
    "projections of different inputs": (
        PROJECTIONS + ATTENTION,
        [("k = MatMul (x,", "n = Neg (x)\nk = MatMul (n,")],
        "qkv",
    ),
    "another reader": (PROJECTIONS + ATTENTION + "\nextra = ReduceSum (q)", [], "qkv"),
    "no module path": (PROJECTIONS + ATTENTION, [], "qk"),
    "a norm between": (
        PROJECTIONS + ATTENTION,
        [("(q, k, v", "(n, k, v"), ("k = MatMul", "n = Softmax (q)\nk = MatMul")],
        "qkv",
    ),
    "RoPE on the queries alone": (PROJECTIONS + ROPE + ROTATE, [("(rq, rk, v", "(rq, k, v")], "qkv"),
    "angles scaled by the length": (
        PROJECTIONS + ROPE + ROTATE,
        [("p = Cast <to = 1> (position_ids)", SCALED_POSITIONS)],
        "qkv",
    ),
}


@pytest.mark.parametrize(("nodes", "changes", "named"), NOT_PACKED.values(), ids=NOT_PACKED)
def test_leaves_other_attention_alone(nodes: str, changes: list[tuple[str, str]], named: str) -> None:
    model = attention(nodes, *changes, named=named)
    before = ops(model)
    assert not PackQkvPass(LONGEST)(model).modified
    assert ops(model) == before


@pytest.mark.parametrize("positions", [None, (128 << 20) // (DIM // 2 * 4) + 1], ids=["unknown", "too many"])
def test_rope_needs_a_context_length_with_a_small_cache(positions: int | None) -> None:
    model = attention(PROJECTIONS + ROPE + ROTATE)
    before = ops(model)
    warnings: list[str] = []
    assert not PackQkvPass(positions, warnings)(model).modified
    assert ops(model) == before
    said = [f"RoPE: cos/sin caches for {positions} positions would take 129 MiB each; the most is 128: "]
    assert [line[: len(said[0])] for line in warnings] == (said if positions else [])
    assert packed(attention(PROJECTIONS + ATTENTION), positions)  # without RoPE there is no cache
