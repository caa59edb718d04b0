"""The KV cache of GroupQueryAttention in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.graphs import graph_of

from graph_passes.quantize_kv_cache import QuantizeKvCachePass, rotated_dims

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 16, 12
WIDTH, KV_WIDTH = HEADS * DIM, KV_HEADS * DIM
KEY, VALUE = "past_k", "past_v"
NODE = (
    "y, key, value = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, scale = 0.25{}> "
    "({}, past_k, past_v, seqlens, total{})"
)
RNG = np.random.default_rng(0)
PER_CHANNEL = {name: RNG.uniform(0.02, 0.04, (KV_HEADS, DIM)).astype(np.float32) for name in (KEY, VALUE)}
PER_TENSOR = {name: np.array([0.03], np.float32) for name in (KEY, VALUE)}


def attention(attributes: str = "", projections: str = "q, k, v", more: str = "", before: str = "") -> ir.Model:
    cache = f"[b, {KV_HEADS}, p, {DIM}]"
    present = cache.replace("p", "t")
    return graph_of(
        before + NODE.format(attributes, projections, more),
        f"float[b, s, {WIDTH}] q, float[b, s, {KV_WIDTH}] k, float[b, s, {KV_WIDTH}] v, float{cache} past_k, "
        f"float{cache} past_v, int32[b] seqlens, int32 total",
        f"float[b, s, {WIDTH}] y, float{present} key, float{present} value",
        imports=', "com.microsoft" : 1',
        cos=np.ones((TOKENS, 8), np.float32),
        sin=np.zeros((TOKENS, 8), np.float32),
        rows=np.arange(TOKENS)[None],
    )


def rounded(x: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    """``x`` [batch, tokens, kv_heads, head_dim] as an 8-bit cache holds it."""
    step = scales.astype(np.float64)
    return np.clip(np.round(x / step), -128, 127) * step


@pytest.mark.parametrize("scales", [PER_CHANNEL, PER_TENSOR], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("parts", [[TOKENS], [5, *[1] * 7]], ids=["prompt", "decode"])
def test_attention_reads_rounded_keys_and_values(scales: dict[str, NDArray[np.float32]], parts: list[int]) -> None:
    model = attention()
    assert QuantizeKvCachePass(scales)(model).modified
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 27):
        pytest.skip("needs onnxruntime 1.27")
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    q, k, v = (RNG.standard_normal((2, TOKENS, width)).astype(np.float32) for width in (WIDTH, KV_WIDTH, KV_WIDTH))
    past = [np.zeros((2, KV_HEADS, 0, DIM), np.int8)] * 2
    outputs, begin = [], 0
    for count in parts:
        end = begin + count
        feeds = dict(zip(("q", "k", "v"), (x[:, begin:end] for x in (q, k, v)), strict=True))
        lengths = {"seqlens": np.full(2, end - 1, np.int32), "total": np.array(end, np.int32)}
        y, *past = session.run(None, {**feeds, **lengths, "past_k": past[0], "past_v": past[1]})
        outputs.append(y)
        begin = end
    assert [array.dtype for array in past] == [np.int8, np.int8]
    keys = rounded(k.reshape(2, TOKENS, KV_HEADS, DIM), scales[KEY])
    values = rounded(v.reshape(2, TOKENS, KV_HEADS, DIM), scales[VALUE])
    scores = np.einsum("bshd,bthd->bhst", q.reshape(2, TOKENS, HEADS, DIM).astype(float), keys.repeat(2, 2)) / 4
    scores = np.where(np.tri(TOKENS, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhst,bthd->bshd", weights, values.repeat(2, 2)).reshape(2, TOKENS, WIDTH)
    # float32 sums of at most 16 and 12 terms; exp carries a score's error of its size, below 8, into the weights
    bound = 8 * (DIM + TOKENS) * 2.0**-24 * np.abs(values).max()
    assert np.abs(np.concatenate(outputs, 1) - expected).max() <= bound


def test_the_graph() -> None:
    model = attention()
    QuantizeKvCachePass(PER_CHANNEL)(model)
    (node,) = model.graph
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {
        "num_heads": HEADS,
        "kv_num_heads": KV_HEADS,
        "scale": 0.25,
        "k_quant_type": "PER_CHANNEL",
        "v_quant_type": "PER_CHANNEL",
        "kv_cache_bit_width": 8,
    }
    stored = model.graph.initializers["past_k.scale"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy()[0, :, 0], PER_CHANNEL[KEY])
    inside = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert {name for name, dtype in inside.items() if dtype == ir.DataType.INT8} == {"past_k", "past_v", "key", "value"}
    assert not QuantizeKvCachePass(PER_CHANNEL)(model).modified


def test_nodes_that_share_type_objects() -> None:
    """As copies of a layer do: a value with an object of theirs keeps its type."""
    model = attention()
    (node,) = model.graph
    copy = ir.node("GroupQueryAttention", node.inputs, node.attributes, num_outputs=3, domain=node.domain)
    model.graph.append(copy)
    own = {"past_k": "other_k", "past_v": "other_v"}
    for place, name in zip((3, 4), own.values(), strict=True):
        value = ir.Value(name=name, type=node.inputs[place].type, shape=node.inputs[place].shape)
        model.graph.inputs.append(value)
        copy.replace_input_with(place, value)
    for result, alike in zip(copy.outputs, node.outputs, strict=True):
        result.type = alike.type
    bystander = node.inputs[0]
    assert bystander is not None
    bystander.type = node.inputs[3].type
    scales = PER_CHANNEL | {own[name]: scales for name, scales in PER_CHANNEL.items()}
    assert QuantizeKvCachePass(scales)(model).modified
    for one in (node, copy):
        assert [value.dtype for value in (*one.inputs[3:5], *one.outputs[1:])] == [ir.DataType.INT8] * 4
        assert one.outputs[0].dtype == ir.DataType.FLOAT
    assert bystander.dtype == ir.DataType.FLOAT


ROTATE = "r = com.microsoft.RotaryEmbedding{} (k, rows, cos, sin)\n"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (attention(), 0),
        (attention(", do_rotary = 1", more=", cos, sin"), 16),
        (attention(projections="q, r, v", before=ROTATE.format("")), DIM),
        (attention(projections="q, r, v", before=ROTATE.format(" <num_heads = 2, rotary_embedding_dim = 8>")), 8),
        (attention(projections="q, n, v", before=ROTATE.format("") + "n = Neg (r)\n"), DIM),
    ],
    ids=["no RoPE", "inside attention", "before it", "of a part", "norms in between"],
)
def test_rotated_dims(model: ir.Model, expected: int) -> None:
    assert rotated_dims(model.graph) == {KEY: expected}
