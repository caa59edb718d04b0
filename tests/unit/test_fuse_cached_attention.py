"""GroupQueryAttention becomes our operators, over a cache of rounded keys and values or in float32."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate
from unit.test_quantize_kv_cache import DIM, KV_HEADS, KV_WIDTH, RNG, TOKENS, WIDTH, attention

from graph_passes.cached_rows import read_rows, round_values
from graph_passes.fuse_cached_attention import FuseCachedAttentionPass

PACKED = {"projections": "qkv, , ", "before": "qkv = Concat <axis = -1> (q, k, v)\n"}
MODELS = {
    "separate projections": (attention(), "CachedAttentionI8"),
    "packed": (attention(**PACKED), "CachedAttentionI8"),
    "RoPE": (attention(", do_rotary = 1", more=", cos, sin", **PACKED), "RotaryCachedAttentionI8"),
    "a window": (attention(", local_window_size = 4"), "CachedAttentionI8"),
}


@pytest.mark.parametrize(("model", "op"), MODELS.values(), ids=MODELS)
def test_computes_attention_with_rounded_keys_and_values(model: ir.Model, op: str) -> None:
    q, k, v = (RNG.standard_normal((2, TOKENS, width)).astype(np.float32) for width in (WIDTH, KV_WIDTH, KV_WIDTH))
    lengths = {"seqlens": np.full(2, TOKENS - 1, np.int32), "total": np.array(TOKENS, np.int32)}
    empty = np.zeros((2, KV_HEADS, 0, DIM), np.float32)
    rounded = [round_values(x.reshape(2, TOKENS, KV_HEADS, DIM)) for x in (k, v)]
    near = {name: x.reshape(k.shape) for name, x in zip("kv", rounded, strict=True)}
    expected, *_ = evaluate(model, q=q, past_k=empty, past_v=empty, **near, **lengths)
    model = model.clone()
    assert FuseCachedAttentionPass("I8")(model).modified
    assert [node.op_type for node in model.graph if node.domain == "com.prosparse"] == [op]
    rows = np.zeros((2, KV_HEADS, 0, DIM + 2), np.int8)
    y, keys, values = evaluate(model, q=q, k=k, v=v, past_k=rows, past_v=rows, **lengths)
    for cache, x in zip((keys, values), rounded, strict=True):
        np.testing.assert_array_equal(read_rows(cache), x.transpose(0, 2, 1, 3))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert not FuseCachedAttentionPass("I8")(model).modified


def test_types_and_shapes() -> None:
    model = attention()
    FuseCachedAttentionPass("I8")(model)
    cache = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for name in ("past_k", "past_v", "key", "value"):
        assert cache[name].dtype == ir.DataType.INT8
        assert cache[name].shape is not None
        assert cache[name].shape[3] == DIM + 2
    assert cache["q"].dtype == cache["y"].dtype == ir.DataType.FLOAT


def test_metadata_name_the_caches_with_a_window() -> None:
    for more, expected in ((", local_window_size = 4", {"past_k": 4, "past_v": 4}), ("", None)):
        model = attention(more)
        FuseCachedAttentionPass("I8")(model)
        found = model.metadata_props.get("com.prosparse.windows")
        assert expected == (None if found is None else json.loads(found))


def test_other_attributes_are_not_dropped() -> None:
    with pytest.raises(ValueError, match="softcap"):
        FuseCachedAttentionPass("I8")(attention(", softcap = 5.0"))


@pytest.mark.parametrize(("model", "op"), MODELS.values(), ids=MODELS)
def test_float32_computes_the_same(model: ir.Model, op: str) -> None:
    q, k, v = (RNG.standard_normal((2, TOKENS, width)).astype(np.float32) for width in (WIDTH, KV_WIDTH, KV_WIDTH))
    lengths = {"seqlens": np.full(2, TOKENS - 1, np.int32), "total": np.array(TOKENS, np.int32)}
    empty = np.zeros((2, KV_HEADS, 0, DIM), np.float32)
    feeds = {"q": q, "k": k, "v": v, "past_k": empty, "past_v": empty, **lengths}
    expected = evaluate(model, **feeds)
    model = model.clone()
    assert FuseCachedAttentionPass("F32")(model).modified
    assert [node.op_type for node in model.graph if node.domain == "com.prosparse"] == [op.replace("I8", "F32")]
    for actual, alike in zip(evaluate(model, **feeds), expected, strict=True):
        np.testing.assert_array_equal(actual, alike)  # without our library: the body is the operator that was there
    assert "com.prosparse.windows" not in model.metadata_props
    assert not FuseCachedAttentionPass("F32")(model).modified


def test_float32_leaves_what_it_cannot_express() -> None:
    assert not FuseCachedAttentionPass("F32")(attention(", softcap = 5.0")).modified
    model = attention()
    for value in model.graph.inputs:
        if value.name in ("past_k", "past_v"):
            value.type = ir.TensorType(ir.DataType.INT8)
    assert not FuseCachedAttentionPass("F32")(model).modified


def test_float32_does_not_need_the_types_of_queries() -> None:
    """What other passes insert between projections and attention has none."""
    model = attention()
    (node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    query = ir.node("Identity", [node.inputs[0]])
    model.graph.insert_before(node, query)
    node.replace_input_with(0, query.outputs[0])
    assert query.outputs[0].dtype is None
    assert FuseCachedAttentionPass("F32")(model).modified


def test_other_inputs_are_not_dropped() -> None:
    model = attention()
    (node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    node.resize_inputs(11)
    node.replace_input_with(10, node.inputs[0])  # attention_bias
    assert not FuseCachedAttentionPass("F32")(model).modified
    with pytest.raises(ValueError, match="input 10"):
        FuseCachedAttentionPass("I8")(model)
