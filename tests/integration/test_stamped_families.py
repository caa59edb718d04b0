"""A graph completed by copies of layers is the graph of all layers, node by node, for every family.

All layers are traced here as torch.onnx does it, with its second trace (prosparse_export/export/decompositions.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from support import model_sizes
from support.families import FAMILIES, Family
from support.model_sizes import GEMMA3N, grouped, sizes
from support.same_graph import first_difference
from transformers import PreTrainedModel

from graph_passes import CannotStampError
from prosparse_export.export import tracing
from prosparse_export.export.lazy_initializers import place_weights
from prosparse_export.export.trace import Trace, trace, trace_and_complete
from prosparse_models import FatReLU, LayerPlan, load_checkpoint, plan_layers
from prosparse_models.loading.gaussian_topk import fix_gaussian_topk

pytestmark = pytest.mark.integration
S, F = "sliding_attention", "full_attention"
LAYERS = 3
ELSEWHERE = ("Gemma 3", "Gemma 3n", "Mixtral-type experts")  # below, with more layers, or traced whole
OTHER_ACTIVATION = ("Mistral with FATReLU", "Qwen2 with FATReLU")  # layers of Bamboo and Qwen2, thresholds of LLaMA
STAMPED = [f for f in FAMILIES if not (f.error or f.encoder_decoder or f.name in (*ELSEWHERE, *OTHER_ACTIVATION))]


@pytest.mark.parametrize("family", STAMPED, ids=lambda family: family.name)
def test_family(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_sizes, "LAYERS", LAYERS)
    family.save(tmp_path)
    checkpoint = load_checkpoint(tmp_path, in_files=True)
    again = family.name != "GPT-NeoX"  # where the second trace keeps a Reshape to the same shape
    stamped, whole = trace(checkpoint.model), traced_whole(checkpoint.model, again=again)
    assert stamped.layers == (2, LAYERS)
    if checkpoint.weights is not None:
        computed = [place_weights(found.graph.graph, checkpoint.weights) for found in (stamped, whole)]
        assert computed[0] == computed[1] or all(computed)
    assert first_difference(stamped.graph, whole.graph) == ""


def mixed(values: dict[str, object], layers: int) -> dict[str, object]:
    return {**values, "num_hidden_layers": layers}


def gemma3() -> PreTrainedModel:
    types = [S, S, F, S, F]
    config = grouped(hidden_activation="relu", layer_types=types, sliding_window=8)
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**mixed(config, len(types))))


def gemma3n(**more: object) -> PreTrainedModel:
    config = {**GEMMA3N, "layer_types": [S, F] * 2, "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 2, **more}
    model = hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**mixed(grouped(**config), 4)))
    fix_gaussian_topk(model)
    return model


def experts() -> PreTrainedModel:
    config = grouped(num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32, mlp_only_layers=[0])
    return hf.Qwen2MoeForCausalLM(hf.Qwen2MoeConfig(**mixed({**config, "hidden_act": "relu"}, 4)))


def eleven_layers() -> PreTrainedModel:
    """The first and last layers differ from the others, of which some have a threshold of their own."""
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**mixed(grouped(hidden_act="relu"), 11)))
    first, *between, last = model.model.layers
    first.mlp.act_fn, last.mlp.act_fn = torch.nn.SiLU(), torch.nn.Tanh()
    for layer, threshold in zip(between, (0.0, 0.02, 0.03, 0.0, 0.05, 0.0, 0.0, 0.02, 0.0), strict=True):
        layer.mlp.act_fn = FatReLU(threshold)
    return model


def scaled_by_index() -> PreTrainedModel:
    values = sizes(n_embd=64, n_head=4, activation_function="relu", scale_attn_by_inverse_layer_idx=True)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**mixed(values, 3), attn_implementation="eager"))


MIXES: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "sliding and full attention": (gemma3, 4),
    "eleven layers of four kinds": (eleven_layers, 6),  # torch names them layers.slice(None, 11, None).0
}


def both_ways(build: Callable[[], PreTrainedModel]) -> tuple[Trace, Trace]:
    model = random(build)
    return trace(model), traced_whole(model)


def traced_whole(model: PreTrainedModel, *, again: bool = True) -> Trace:
    with pytest.MonkeyPatch.context() as patch:
        if again:
            patch.setattr(tracing, "decomposed_in_place", contextlib.nullcontext)
        return trace(model, whole=True)


def random(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


@pytest.mark.parametrize("name", MIXES)
def test_layers_of_several_kinds(name: str) -> None:
    build, traced = MIXES[name]
    stamped, whole = both_ways(build)
    assert stamped.layers is not None
    assert stamped.layers[0] == traced
    assert first_difference(stamped.graph, whole.graph) == ""


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (gemma3n, "4 layers of 4 kinds"),
        (lambda: gemma3n(num_kv_shared_layers=2), "layers share keys and values"),
        (scaled_by_index, "3 layers of 3 kinds"),
    ],
    ids=["inputs per layer", "shared keys and values", "a scale per layer"],
)
def test_models_without_copies(build: Callable[[], PreTrainedModel], reason: str) -> None:
    assert str(plan_layers(random(build))).startswith(reason)


def test_graphs_without_copies() -> None:
    """Torch gives the operators of experts no module path."""
    model = random(experts)
    plan = plan_layers(model)
    assert isinstance(plan, LayerPlan)
    with pytest.raises(CannotStampError, match="layers 1 and 3 differ"):
        trace_and_complete(model, plan)


def test_without_copies_all_layers_are_traced() -> None:
    found = trace(random(scaled_by_index))
    assert found.layers is None
    assert found.reason.startswith("3 layers of 3 kinds")
