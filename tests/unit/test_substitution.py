"""Changing the activation of FFNs, and loading the result."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_models import MODELS, build, byte_tokenizer
from transformers import AutoModelForCausalLM, BloomConfig

from prosparse_models import CheckpointError, TrainingError, find_ffns, load_checkpoint, substitute_activation
from prosparse_models.loading.substitution import saved_fields, set_thresholds
from prosparse_models.training.calibration import calibrate
from prosparse_models.training.saving import write_model


@pytest.mark.parametrize("name", MODELS)
def test_relu_is_what_transformers_reads_back(name: str, tmp_path: Path) -> None:
    model = build(MODELS[name][0])
    ids = torch.arange(3, 20)[None]
    before = model(input_ids=ids).logits
    ffns = find_ffns(model)
    substitute_activation(model, ffns, "relu")
    expected = model(input_ids=ids).logits
    assert not torch.allclose(before, expected)
    write_model(tmp_path / "m", model, byte_tokenizer(), saved_fields(model.config, "relu", [0.0]), torch.float32)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(read(input_ids=ids).logits, expected, rtol=0, atol=0)
    x1: list[torch.Tensor] = []
    find_ffns(read)[1].down.register_forward_pre_hook(lambda _, a: x1.append(a[0]))
    read(input_ids=ids)
    assert 0.05 < (x1[0] == 0).float().mean() < 0.95


@pytest.mark.parametrize("activation", ["relu", "relu2", "fatrelu", "drelu", "fatrelu by layer"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_what_is_saved_is_what_is_loaded(name: str, activation: str, tmp_path: Path) -> None:
    model = build(MODELS[name][0])
    ffns = find_ffns(model)
    thresholds = [0.05, 0.05]
    if activation == "drelu" and name == "opt":
        with pytest.raises(TrainingError, match="drelu: expected separate gate and up projections"):
            substitute_activation(model, ffns, activation)
        return
    if activation == "fatrelu by layer":
        activation, thresholds = "fatrelu", [0.05, 0.2]
    substitute_activation(model, ffns, activation, thresholds[0] if activation == "fatrelu" else 0.0)
    if activation == "fatrelu":
        set_thresholds(ffns, thresholds)
    fields = saved_fields(model.config, activation, thresholds)
    write_model(tmp_path / "m", model, byte_tokenizer(), fields, torch.float32)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.activation == activation
    assert loaded.threshold == (0.05 if activation == "fatrelu" else 0.0)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
    if activation == "fatrelu":
        assert loaded.config["hidden_act_param"] == (0.05 if thresholds[0] == thresholds[1] else thresholds)
        acts = [b.activation for b in find_ffns(loaded.model)]
        z = torch.tensor([0.1, 0.3])
        assert [a(z).tolist() for a in acts] == [
            [pytest.approx(0.1 if t < 0.1 else 0), pytest.approx(0.3)] for t in thresholds
        ]


def test_drelu_has_zeros_of_both() -> None:
    model = build(MODELS["llama"][0])
    ffn = find_ffns(model)[0]
    substitute_activation(model, [ffn], "drelu")
    x, seen = torch.randn(5, 16), []
    ffn.down.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    ffn.parent(x)
    gate, up = x @ ffn.gate.weight.T, x @ ffn.up.weight.T
    torch.testing.assert_close(seen[0], gate.clamp_min(0) * up.clamp_min(0))


def test_drelu_is_undone_by_another_activation() -> None:
    model = build(MODELS["llama"][0])
    ffns = find_ffns(model)
    ids = torch.arange(3, 20)[None]
    substitute_activation(model, ffns, "relu")
    relu = model(input_ids=ids).logits
    substitute_activation(model, ffns, "drelu")
    substitute_activation(model, ffns, "drelu")
    assert [len(ffn.up._forward_hooks) for ffn in ffns] == [1, 1]
    with pytest.raises(TrainingError, match=r"layers\.0.*expected ReLU or FATReLU, got dReLU"):
        calibrate(model, ffns, [ids[0]], budget=0.01)
    copied = copy.deepcopy(model)
    for other in (model, copied):
        assert not torch.equal(other(input_ids=ids).logits, relu)
        substitute_activation(other, find_ffns(other), "relu")
        torch.testing.assert_close(other(input_ids=ids).logits, relu, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["drelu", "fatrelu", "relu"])
def test_keep_saves_the_models_own_activation(activation: str, tmp_path: Path) -> None:
    model = build(MODELS["llama"][0])
    substitute_activation(model, find_ffns(model), activation, 0.1 if activation == "fatrelu" else 0.0)
    write_model(tmp_path / "a", model, byte_tokenizer(), saved_fields(model.config, activation, [0.1]), torch.float32)
    loaded = load_checkpoint(tmp_path / "a")
    substitute_activation(loaded.model, find_ffns(loaded.model), "keep")
    fields = saved_fields(loaded.model.config, "keep", [0.0], loaded.config)
    write_model(tmp_path / "b", loaded.model, byte_tokenizer(), fields, torch.float32)
    again, ids = load_checkpoint(tmp_path / "b"), torch.arange(3, 20)[None]
    assert (again.activation, again.threshold) == (activation, 0.1 if activation == "fatrelu" else 0.0)
    torch.testing.assert_close(again.model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


def test_wrong_number_of_thresholds(tmp_path: Path) -> None:
    model = build(MODELS["llama"][0])
    fields = {"hidden_act": "fatrelu", "hidden_act_param": [0.1, 0.2, 0.3]}
    write_model(tmp_path / "m", model, byte_tokenizer(), fields, torch.float32)
    with pytest.raises(CheckpointError, match="fatrelu"):
        load_checkpoint(tmp_path / "m")
    change = json.loads((tmp_path / "m" / "config.json").read_text()) | {"hidden_act_param": [0.1, "x"]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(change))
    with pytest.raises(CheckpointError, match="or one per layer"):
        load_checkpoint(tmp_path / "m")


def test_rejects_a_config_without_an_activation_field() -> None:
    config: Any = BloomConfig(vocab_size=259, hidden_size=16, n_layer=2, n_head=2)
    model = build(config)
    with pytest.raises(TrainingError, match="could not be saved"):
        substitute_activation(model, find_ffns(model), "relu")
