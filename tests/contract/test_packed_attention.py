"""Packed q, k and v projections with RoPE inside attention give PyTorch's logits, or three projections stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from transformers import PreTrainedModel

from graph_passes import LinearOutcome, WeightPlan, export_pipeline, parts_of
from graph_passes.patterns import rope_cache as rope_cache_module
from graph_passes.patterns.rope_cache import rope_cache
from graph_passes.weights.packed_names import packed_name
from prosparse_export.export.trace import trace
from prosparse_export.validation.rope_cache import expected_caches

LAYERS, DIM, LONGEST, VOCAB = 2, 16, 64, 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
}


def llama(rope: dict[str, Any] | None = None, **more: Any) -> PreTrainedModel:
    settings = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **settings, **more}))


def opt() -> PreTrainedModel:
    sizes = {**SIZES, "ffn_dim": 80, "word_embed_proj_dim": 64}
    return hf.OPTForCausalLM(hf.OPTConfig(**sizes))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PACKED: dict[str, Callable[[], PreTrainedModel]] = {
    "grouped queries": llama,
    "biases": lambda: llama(attention_bias=True),
    "yarn, whose cos/sin cache is scaled": lambda: llama(YARN),
    "llama3": lambda: llama(LLAMA3),
    "opt, whose queries are scaled": opt,
}
KEPT: dict[str, Callable[[], PreTrainedModel]] = {
    "heads of 8, which the operator does not rotate": lambda: llama(head_dim=8),
    "norms between": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=DIM)),
}


@cache
def _traced(kind: str) -> tuple[PreTrainedModel, ir.Model]:
    torch.manual_seed(0)
    model = {**PACKED, **KEPT}[kind]().eval()
    for name, parameter in model.named_parameters():  # biases too; in numbers that float16 holds
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
        parameter.data.copy_(parameter.data.half().float())
    return model, trace(model).graph


def traced(kind: str) -> tuple[PreTrainedModel, ir.Model]:
    """Return a model and a graph of it to change: each kind is traced once."""
    model, graph = _traced(kind)
    return model, graph.clone()


def passed(model: ir.Model, **options: Any) -> ir.Model:
    not_fused: list[str] = []
    result = export_pipeline([], not_fused, **options)(model).model
    assert not_fused == []
    return result


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


def logits(model: ir.Model, ids: NDArray[np.int64], mask: NDArray[np.int64], parts: list[int]) -> NDArray[np.float32]:
    """Logits ``[batch, tokens, vocabulary]`` of a text that comes in parts, with the cache."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    inputs = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]
    cache = {v.name: np.zeros((len(ids), v.shape[1], 0, v.shape[3]), np.float32) for v in inputs}
    results, begin = [], 0
    for count in parts:
        end = begin + count
        positions = np.maximum(mask[:, :end].cumsum(-1) - 1, 0)[:, begin:]
        feeds = {"input_ids": ids[:, begin:end], "attention_mask": mask[:, :end], "position_ids": positions, **cache}
        first, *present = session.run(None, feeds)
        cache = dict(zip(cache, present, strict=True))
        results.append(first)
        begin = end
    return np.concatenate(results, 1)


def assert_pytorchs(model: PreTrainedModel, graph: ir.Model) -> None:
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(1, VOCAB, (3, 20)), np.ones((3, 20), np.int64)
    mask[1, :3], mask[2, :7] = 0, 0
    long = rng.integers(1, VOCAB, (1, LONGEST))  # to the last position
    for text, kept, parts in ((ids, mask, [14, *[1] * 6]), (long, np.ones_like(long), [30, 20, *[1] * 14])):
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(text), attention_mask=torch.from_numpy(kept)).logits.numpy()
        actual = logits(graph, text, kept, parts)
        # Every sum on the way, of at most 80 or as many terms as tokens, in another order; angles are the same.
        bound = 2 * LAYERS * (8 * 64 + 80 + LONGEST) * 2.0**-24 * np.abs(expected).max()
        worst = np.abs(actual - expected)[kept == 1].max()
        assert worst <= bound


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("weights", ["f32", "f16"])
def test_packed(kind: str, weights: Any) -> None:
    model, graph = traced(kind)
    linears: list[LinearOutcome] = []
    graph = passed(graph, positions=LONGEST, plan=WeightPlan.of(weights), linears=linears)
    nodes = attentions(graph)
    assert len(nodes) == LAYERS
    for layer, node in enumerate(nodes):
        q, k, v = node.inputs[:3]
        assert k is None
        assert v is None
        matmul = q.producer() if q is not None else None
        assert matmul is not None
        if matmul.op_type == "Add":
            matmul = matmul.inputs[0].producer()  # type: ignore[union-attr]
        parts = parts_of(matmul.name or "")
        assert [part.rpartition(".")[2] for part in parts] == ["q_proj", "k_proj", "v_proj"]
        assert all(f"layers.{layer}." in part for part in parts)
        assert node.attributes.get_int("do_rotary", 0) == (0 if kind.startswith("opt") else 1)
    assert not any(node.op_type == "RotaryEmbedding" for node in graph.graph)
    assert sum("rotary" in name for name in graph.graph.initializers) == (0 if kind.startswith("opt") else 2)
    if weights == "f16":
        names = {part for linear in linears for part in parts_of(linear.module)}
        modules = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        assert names >= {name for name in modules if ".self_attn." in name}
    assert_pytorchs(model, graph)


@pytest.mark.parametrize("kind", KEPT)
def test_three_projections_stay(kind: str) -> None:
    model, graph = traced(kind)
    graph = passed(graph, positions=LONGEST)
    assert all(None not in node.inputs[:3] for node in attentions(graph))
    assert not any("rotary_cos" in name for name in graph.graph.initializers)
    assert_pytorchs(model, graph)


def test_three_projections_stay_where_no_longest_text_is_known() -> None:
    model, graph = traced("grouped queries")
    graph = passed(graph, positions=None)
    assert all(None not in node.inputs[:3] for node in attentions(graph))
    assert_pytorchs(model, graph)
    learned = passed(traced("opt, whose queries are scaled")[1], positions=None)  # no cos/sin cache is needed
    assert all(node.inputs[1] is None for node in attentions(learned))


def test_three_projections_stay_where_tables_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope_cache_module, "MOST_BYTES", LONGEST * DIM // 2 * 4)
    graphs = [passed(traced("grouped queries")[1], positions=positions) for positions in (LONGEST, LONGEST + 1)]
    sizes = [sum("prosparse.rotary" in name for name in graph.graph.initializers) for graph in graphs]
    assert sizes == [2, 0]
    assert [node.inputs[1] is None for graph in graphs for node in attentions(graph)] == [True] * 2 + [False] * 2


def test_angles_that_depend_on_the_text_stay_in_the_graph() -> None:
    """Angles have one more factor, as with scaling by the sequence length."""
    model = traced("grouped queries")[1]
    cast = next(
        n
        for n in model.graph
        if n.op_type == "Mul" and any(v is not None and "inv_freq" in (v.name or "") for v in n.inputs)
    )
    scale = ir.node("ReduceMax", [cast.inputs[0]], {"keepdims": 0})
    longer = ir.node("Mul", [cast.inputs[0], scale.outputs[0]])
    model.graph.insert_before(cast, [scale, longer])
    cast.replace_input_with(0, longer.outputs[0])
    graph = passed(model, positions=LONGEST)
    assert all(None not in node.inputs[:3] for node in attentions(graph))
    assert sum(node.op_type == "RotaryEmbedding" for node in graph.graph) == 2 * LAYERS


def test_matrices_lie_one_after_the_other() -> None:
    model, graph = traced("biases")
    graph = passed(graph, positions=LONGEST, plan=WeightPlan("f32", "f16")).graph
    own = model.model.layers[1].self_attn
    name = "model.layers.1.self_attn.q_proj+k_proj+v_proj"
    stored = graph.initializers[f"{name}.weight.f16"].const_value
    assert stored is not None
    expected = torch.cat([p.weight for p in (own.q_proj, own.k_proj, own.v_proj)]).detach().half().numpy()
    np.testing.assert_array_equal(stored.numpy(), expected)
    bias = graph.initializers[f"{name}.bias"].const_value
    assert bias is not None
    biases = torch.cat([p.bias for p in (own.q_proj, own.k_proj, own.v_proj)]).detach().numpy()
    np.testing.assert_array_equal(bias.numpy(), biases)
    assert not any("q_proj.weight" in name for name in graph.initializers)  # stored once


def test_tables_are_pytorchs_within_an_ulp() -> None:
    model = llama(YARN)
    rotary = model.model.rotary_emb
    positions = torch.arange(LONGEST)[None]
    cos, sin = (table[0, :, : DIM // 2].numpy() for table in rotary(torch.zeros(1, 1, 1), positions))
    frequencies = rotary.inv_freq.numpy()
    assert rotary.attention_scaling > 1.1
    for name, expected in (("cos", cos), ("sin", sin)):
        table = rope_cache(name, frequencies, LONGEST, rotary.attention_scaling)
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, expected, rtol=0, atol=2 * 2.0**-24 * rotary.attention_scaling)


def test_validate_expects_the_models_own_tables_alone() -> None:
    model = llama(YARN)
    (table,) = expected_caches(model, "prosparse.rotary_sin.0", LONGEST)
    scale = model.model.rotary_emb.attention_scaling
    np.testing.assert_array_equal(table, rope_cache("sin", model.model.rotary_emb.inv_freq.numpy(), LONGEST, scale))
    assert expected_caches(model, "model.norm.weight", LONGEST) == []


def test_names() -> None:
    modules = [f"model.layers.3.self_attn.{part}_proj" for part in "qkv"]
    name = packed_name(modules)
    assert name == "model.layers.3.self_attn.q_proj+k_proj+v_proj"
    assert parts_of(name) == modules
    assert parts_of("lm_head") == ["lm_head"]
    assert parts_of(packed_name(["q", "k"])) == ["q", "k"]
    for others in (["a.q", "b.k"], ["a.q", ""], ["a.q", "a.x+y"]):
        assert packed_name(others) == ""
