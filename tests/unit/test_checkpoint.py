"""Reading model folders: the released sparse checkpoints' config.json, and damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_models import CheckpointError, FatReLU, load_checkpoint

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
# The fields of the released checkpoints' config.json that say what they are.
RELEASED: dict[str, tuple[dict[str, Any], str, float]] = {
    "ProSparse-LLaMA-2-7B": (
        {
            "architectures": ["SparseLlamaForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_sparsellama.SparseLlamaConfig",
                "AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM",
            },
            "model_type": "sparsellama",
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.01,
        },
        "fatrelu",
        0.01,
    ),
    "MiniCPM-S-1B-sft-llama-format": (
        {
            "architectures": ["LlamaForCausalLM"],
            "auto_map": {"AutoConfig": "LlamaConfig", "AutoModelForCausalLM": "LlamaForCausalLM"},
            "model_type": "llama",
            "hidden_act": "relu",
        },
        "relu",
        0.0,
    ),
    "its fatrelu sibling": (
        {
            "architectures": ["LlamaForCausalLM"],
            "auto_map": {"AutoConfig": "LlamaConfig", "AutoModelForCausalLM": "LlamaForCausalLM"},
            "model_type": "llama",
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.03,
        },
        "fatrelu",
        0.03,
    ),
    "ReluLLaMA": ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "relu"}, "relu", 0.0),
}


def make_folder(folder: Path, fields: dict[str, Any], **sizes: Any) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}, hidden_act="relu"))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**SIZES, **sizes, **fields}))
    return folder


def plant_code(folder: Path) -> Path:
    """Code that leaves a mark if it is ever imported."""
    mark = folder / "ran"
    for name in ("configuration_sparsellama.py", "modeling_sparsellama.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w').close()\n")
    return mark


@pytest.mark.parametrize(("fields", "activation", "threshold"), RELEASED.values(), ids=RELEASED)
def test_reads_released_checkpoints(fields: dict[str, Any], activation: str, threshold: float, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", fields)
    mark = plant_code(folder)
    checkpoint = load_checkpoint(folder)
    assert not mark.exists()
    assert (checkpoint.activation, checkpoint.threshold) == (activation, threshold)
    assert isinstance(checkpoint.model, LlamaForCausalLM)
    act = checkpoint.model.model.layers[1].mlp.act_fn
    z = torch.tensor([-1.0, 0.0, threshold, threshold + 0.5])
    assert act(z).tolist() == [0.0, 0.0, 0.0, pytest.approx(threshold + 0.5)]
    assert isinstance(act, FatReLU) == (activation == "fatrelu")
    assert checkpoint.config["hidden_act"] == activation
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.config.get("hidden_act_param", 0.0) == threshold
    assert "auto_map" not in checkpoint.config


def test_weights_are_the_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", RELEASED["ProSparse-LLaMA-2-7B"][0])
    torch.manual_seed(0)
    original = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="relu"))
    loaded = load_checkpoint(folder).model.state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_minicpm_scales_are_folded(tmp_path: Path) -> None:
    fields = {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "hidden_act": "relu",
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 8,
    }
    folder = make_folder(tmp_path / "m", fields)
    ids = torch.arange(10)[None]
    checkpoint = load_checkpoint(folder)
    torch.manual_seed(0)
    raw = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="relu")).eval()
    branch = 1.4 / 2**0.5  # scale_depth / sqrt(layers)
    with torch.no_grad():
        raw.model.embed_tokens.register_forward_hook(lambda *a: a[2] * 12)
        for layer in raw.model.layers:  # MiniCPM's own formulation: scale each branch's output
            layer.self_attn.register_forward_hook(lambda *a: (a[2][0] * branch, *a[2][1:]))
            layer.mlp.register_forward_hook(lambda *a: a[2] * branch)
        raw.lm_head.register_forward_pre_hook(lambda m, a: (a[0] / (16 / 8),))
        expected = raw(input_ids=ids).logits
        actual = checkpoint.model(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


_CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM
open({mark!r}, "w").close()
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_runs_when_it_is_trusted(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    fields = {"model_type": "mine", "architectures": ["MineForCausalLM"], "hidden_act": "relu", "auto_map": auto_map}
    folder = make_folder(tmp_path / "m", fields)
    mark = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(_CUSTOM.format(mark=str(mark)))
    program = "import sys; from pathlib import Path; from prosparse_models import load_checkpoint as load; "
    program += "print(type(load(Path(sys.argv[1]), trust_remote_code=True).model).__name__)"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", program, str(folder)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "MineForCausalLM"
    assert mark.exists()


BAD_FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "architectures is a number": ({"architectures": 5}, "architectures: expected a JSON list, got 5"),
    "model_type is a list": ({"model_type": ["llama"]}, "model_type: expected a JSON string, got ['llama']"),
    "hidden_size is text": ({"hidden_size": "abc"}, "hidden_size"),
    "no heads": ({"num_attention_heads": 0}, "config.json"),
    "an unknown activation": ({"hidden_act": "foo"}, "foo"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "got a quantized checkpoint"),
}


def damaged(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if name == "no config.json":
        (folder / "config.json").unlink()
    elif name == "config.json is no JSON":
        (folder / "config.json").write_text("{")
    elif name == "config.json is a list":
        (folder / "config.json").write_text("[]")
    elif name == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif name == "no weights":
        weights.unlink()
    elif name == "unknown model_type":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llamma"}))
    elif name == "fatrelu without a threshold":
        (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "fatrelu"}))
    elif name == "unknown type with code":
        auto_map = {"AutoModelForCausalLM": "modeling_sparsellama.X", "AutoConfig": "configuration_sparsellama.Y"}
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto_map}))
    elif name == "a layer too many in config.json":
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif name == "another width in config.json":
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    elif name in BAD_FIELDS:
        (folder / "config.json").write_text(json.dumps({**config, **BAD_FIELDS[name][0]}))
    elif name == "a bias that config.json does not have":
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.0.mlp.gate_proj.bias"] = torch.zeros(config["intermediate_size"])
        save_file(tensors, path, metadata={"format": "pt"})
    elif name == "an index that is a list":
        (folder / "model.safetensors.index.json").write_text("[]")
    elif name == "junk that is called a pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"junk")
    else:
        shutil.rmtree(folder)


DAMAGED = {
    "no folder": "no such folder",
    "no config.json": "no config.json found",
    "config.json is no JSON": "expected JSON, got",
    "config.json is a list": "expected a JSON object, got list",
    "truncated weights": "not a valid safetensors file (",
    "no weights": "no *.safetensors file found",
    "unknown model_type": "unknown model_type 'llamma'",
    "fatrelu without a threshold": "expected hidden_act_param to be its threshold",
    "unknown type with code": "which was not run",
    "a layer too many in config.json": "parameters have no tensor in the files: model.layers.2.",
    "another width in config.json": "down_proj.weight: expected shape [16, 48] from config.json, got [16, 32]",
    "a bias that config.json does not have": "not in the model of config.json: model.layers.0.mlp.gate_proj.bias",
    "an index that is a list": "expected a JSON object with a weight_map",
    "junk that is called a pickle": "cannot be loaded",
    **{name: message for name, (_, message) in BAD_FIELDS.items()},
}


@pytest.mark.parametrize(("name", "message"), DAMAGED.items(), ids=DAMAGED)
def test_rejects_damaged_folders(name: str, message: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", RELEASED["ReluLLaMA"][0])
    mark = plant_code(folder)
    damaged(name, folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not mark.exists()
