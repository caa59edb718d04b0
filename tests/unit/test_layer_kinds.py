"""Which layers of a PyTorch model are copies of one another."""

from __future__ import annotations

import pytest
import torch
from support.model_sizes import GEMMA3N, grouped, sizes
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from prosparse_models import FatReLU, LayerPlan, few_layers, plan_layers

S, F = "sliding_attention", "full_attention"


def llama(layers: int = 5) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**grouped(hidden_act="relu"), "num_hidden_layers": layers})).eval()


def plan(model: PreTrainedModel) -> LayerPlan:
    found = plan_layers(model)
    assert isinstance(found, LayerPlan), found
    return found


def test_first_and_last_of_equal_layers() -> None:
    found = plan(llama())
    assert (found.path, found.count, found.traced) == ("model.layers", 5, (0, 4))
    assert (found.first, found.template, found.marks) == ((0,) * 5, (4,) * 5, {})
    assert ("self_attn", "layer_idx") in found.indices


def test_sliding_and_full_attention() -> None:
    config = {**grouped(layer_types=[S, S, F, S, S, S, F, S], sliding_window=8), "num_hidden_layers": 8}
    found = plan(Gemma3ForCausalLM(Gemma3TextConfig(**config)))
    assert found.traced == (0, 2, 6, 7)
    assert found.template == (7, 7, 6, 7, 7, 7, 6, 7)


def test_dense_and_expert_layers() -> None:
    config = grouped(num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32, mlp_only_layers=[0])
    found = plan(Qwen2MoeForCausalLM(Qwen2MoeConfig(**{**config, "num_hidden_layers": 4})))
    assert found.traced == (0, 1, 3)


def test_layers_without_a_head() -> None:
    found = plan(BertModel(BertConfig(**{**sizes(), "num_hidden_layers": 3})))
    assert (found.path, found.traced) == ("encoder.layer", (0, 2))


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_layer_of_another_kind(layer: int) -> None:
    model = llama()
    model.model.layers[layer].mlp.act_fn = nn.SiLU()
    assert layer in plan(model).traced
    assert plan(model).template.count(layer) == 1


def test_an_undeclared_attribute_makes_a_kind() -> None:
    model = llama()
    model.model.layers[2].self_attn.scaling = 0.3
    assert plan(model).traced == (0, 2, 4)
    model.model.layers[2].mlp.anything = object()
    model.model.layers[1].register_forward_hook(lambda *_: None)
    assert plan(model).traced == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.model.layers[3].mlp, "up_proj", m.model.layers[1].mlp.up_proj), "is shared with"),
        (lambda m: setattr(m.model.layers[3].self_attn.q_proj, "weight", m.model.embed_tokens.weight), "is shared"),
        (lambda m: setattr(m.model.layers[3].self_attn, "kv_layer_idx", 1), "refers to layer 1"),
        (lambda m: setattr(m.model, "others", nn.ModuleList(nn.Linear(1, 1) for _ in range(5))), "found 2"),
    ],
)
def test_reasons_to_trace_all_layers(change: object, reason: str) -> None:
    model = llama()
    change(model)  # type: ignore[operator]
    found = plan_layers(model)
    assert isinstance(found, str)
    assert reason in found


def test_shared_keys_and_values() -> None:
    config = {**grouped(**GEMMA3N), "num_hidden_layers": 4, "layer_types": [S, F] * 2, "num_kv_shared_layers": 2}
    config["activation_sparsity_pattern"] = [0.0] * 4
    assert plan_layers(Gemma3nForCausalLM(Gemma3nTextConfig(**config))) == "layers share keys and values"


def test_nothing_to_copy() -> None:
    assert plan_layers(llama(2)) == "2 layers of 1 kinds: none is a copy of two others"


def test_few_layers_and_back() -> None:
    model = llama()
    for layer, threshold in zip(model.model.layers, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        layer.mlp.act_fn = FatReLU(threshold)
    ids = torch.arange(6)[None]
    before, layers = model(input_ids=ids).logits, list(model.model.layers)
    found = plan(model)
    assert list(found.marks) == [(0, "mlp.act_fn"), (4, "mlp.act_fn")]
    with few_layers(model, found):
        assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
        assert {layer.mlp.act_fn.threshold for layer in model.model.layers} == set(found.marks.values())
    assert list(model.model.layers) == layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3, 4]
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_threshold_of_zero_is_a_kind_of_its_own() -> None:
    model = llama()
    for layer in model.model.layers:
        layer.mlp.act_fn = FatReLU(0.1)
    assert plan(model).marks == {}
    model.model.layers[1].mlp.act_fn = FatReLU(0.0)
    assert plan(model).traced == (0, 1, 4)
