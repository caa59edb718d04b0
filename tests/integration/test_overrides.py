"""``--activation`` and ``--threshold``, and the released checkpoints whose config.json is not the whole truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.model_sizes import D_FF, D_MODEL, VOCAB, grouped
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_models import load_checkpoint
from prosparse_models.loading.weight_files import stored_dtype

pytestmark = pytest.mark.integration
SAKANA = {
    "model_type": "llama_sparse_relu",
    "architectures": ["LlamaSparseReluForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llama_sparse_relu.LlamaSparseReluForCausalLM"},
    "hidden_act": "silu",
}


def make(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**grouped(hidden_act="relu")))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def activations(folder: Path, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the FFN computes for pre-activations, through the module itself: (z, act(z))."""
    model = load_checkpoint(folder, **options).model
    z = torch.linspace(-1.0, 1.0, 41)
    return z, model.model.layers[0].mlp.act_fn(z)


def test_silu_in_config_and_relu_in_code(tmp_path: Path) -> None:
    z, a = activations(make(tmp_path / "m", **SAKANA))
    torch.testing.assert_close(a, z.clamp(min=0), rtol=0, atol=0)


def test_decomposed_export_of_silu_in_config_and_relu_in_code(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", **SAKANA)
    result = export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(decomposed=True))
    assert [o.activation for o in result.rewritten] == ["relu"]
    assert result.manifest.overrides == {}  # the code's own activation is no override
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["hidden_act"]) == ("llama", "relu")
    relu = make(tmp_path / "relu")  # the same weights with relu in config.json: PyTorch without our loader
    assert_logits(result.path, LlamaForCausalLM.from_pretrained(relu).eval())

    proto = onnx.load(result.path)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert not (result.path.parent / "lib").exists()
    onnx.checker.check_model(str(result.path), full_check=True)


def test_threshold_restores_what_the_llama_format_lost(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    z, a = activations(folder, threshold=0.33)
    torch.testing.assert_close(a, torch.where(z > 0.33, z, 0.0), rtol=0, atol=0)
    result = export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(threshold=0.03))
    assert [(o.activation, round(o.threshold, 6)) for o in result.rewritten] == [("fatrelu", 0.03)]
    assert result.manifest.to_dict()["overrides"] == {
        "activation": {"config": "relu", "used": "fatrelu"},
        "threshold": {"config": 0.0, "used": 0.03},
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_act"], config["hidden_act_param"]) == ("fatrelu", 0.03)
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 9))
    with torch.no_grad():
        expected = load_checkpoint(folder, threshold=0.03).model(input_ids=torch.from_numpy(ids)).logits.numpy()
        without = load_checkpoint(folder).model(input_ids=torch.from_numpy(ids)).logits.numpy()
    actual, _ = load(result.path).forward(ids, np.ones_like(ids))
    assert np.abs(actual - expected).max() <= (8 * D_MODEL + D_FF) * 2.0**-22 * np.abs(expected).max()
    assert np.abs(actual - without).max() > 1e-3  # the threshold does something


@pytest.mark.parametrize(("activation", "power"), [("relu", 1), ("relu2", 2), ("drelu", 1)])
def test_activation_overrides_the_config(activation: str, power: int, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", hidden_act="silu")
    checkpoint = load_checkpoint(folder, activation=activation)
    assert checkpoint.overrides == {"activation": {"config": "silu", "used": activation}}
    assert checkpoint.config["hidden_act"] == activation
    mlp = checkpoint.model.model.layers[0].mlp
    x = torch.randn(3, D_MODEL)
    up = x @ mlp.up_proj.weight.T
    hidden = (x @ mlp.gate_proj.weight.T).clamp(min=0) ** power * (up.clamp(min=0) if activation == "drelu" else up)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down_proj.weight.T)


def test_activation_reaches_models_that_call_it_otherwise(tmp_path: Path) -> None:
    config = OPTConfig(vocab_size=VOCAB, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2)
    config.word_embed_proj_dim, config.activation_function = 16, "gelu"
    OPTForCausalLM(config).save_pretrained(tmp_path / "m")
    model = load_checkpoint(tmp_path / "m", activation="relu").model
    z = torch.linspace(-1.0, 1.0, 9)
    for layer in model.model.decoder.layers:
        torch.testing.assert_close(layer.activation_fn(z), z.clamp(min=0), rtol=0, atol=0)


BAD = {
    "a threshold without fatrelu": ({"activation": "relu2", "threshold": 0.1}, "expected fatrelu, got 'relu2'"),
    "fatrelu without a threshold": ({"activation": "fatrelu"}, "fatrelu needs a threshold"),
    "a threshold for silu": ({"threshold": 0.1}, "got 'silu'"),
    "a negative threshold": ({"activation": "fatrelu", "threshold": -1.0}, "expected a finite number >= 0, got -1"),
    "no such activation": ({"activation": "gelu"}, "expected one of relu, relu2, fatrelu, drelu, got 'gelu'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_overrides_are_one_line(name: str, tmp_path: Path) -> None:
    options, message = BAD[name]
    folder = make(tmp_path / "m", hidden_act="silu")
    with pytest.raises(ProSparseError) as caught:
        export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_float32_shards_under_a_bfloat16_config_stay_float32(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", dtype="bfloat16", torch_dtype="bfloat16")
    checkpoint = load_checkpoint(folder)
    assert checkpoint.weight_dtype == "float32"
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(checkpoint.model.state_dict()[name], stored[name])
    save_file({k: v.bfloat16() for k, v in stored.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert stored_dtype((folder / "model.safetensors",)) == "bfloat16"


def assert_logits(path: Path, model: torch.nn.Module) -> None:
    """The artifact gives the model's logits, and not those of the same model with SiLU."""
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 9))
    actual, _ = load(path, library=False).forward(ids, np.ones_like(ids))
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
        model.model.layers[0].mlp.act_fn = torch.nn.SiLU()
        silu = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    bound = (8 * D_MODEL + D_FF) * 2.0**-22 * np.abs(expected).max()
    assert np.abs(actual - expected).max() <= bound
    assert np.abs(actual - silu).max() > 100 * bound
