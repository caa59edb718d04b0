"""config.json in transformers' terms, and what is wrong with damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prosparse_models import CheckpointError
from prosparse_models.loading.model_config import ModelConfig, read_model_config


def read(folder: Path, **values: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_model_config(folder)


@pytest.mark.parametrize(
    ("stated", "architecture", "model_type", "activation"),
    [
        ("sparsellama", "SparseLlamaForCausalLM", "llama", "relu"),
        ("minicpm", "MiniCPMForCausalLM", "llama", "relu"),
        ("llama_sparse_relu", "Own", "llama", "relu"),
        ("bamboo", "BambooForCausalLM", "mistral", "drelu"),
        ("opt", "OPTForCausalLM", "opt", "relu"),
    ],
)
def test_model_types(stated: str, architecture: str, model_type: str, activation: str, tmp_path: Path) -> None:
    acts = {"hidden_act": "silu" if stated in ("llama_sparse_relu", "bamboo") else "relu"}
    config = read(tmp_path, model_type=stated, architectures=[architecture], **acts)
    assert (config.source_type, config.values["model_type"], config.activation) == (stated, model_type, activation)
    known = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
    assert config.values["architectures"] == [known.get(model_type, architecture)]
    assert config.is_minicpm == (stated == "minicpm")
    assert not config.needs_code


def test_the_architecture_stands_in_for_the_model_type(tmp_path: Path) -> None:
    config = read(tmp_path, architectures=["SparseLlamaForCausalLM"])
    assert (config.source_type, config.values["model_type"]) == ("SparseLlamaForCausalLM", "llama")


def test_references_to_code_are_dropped(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoModel": "modeling_own.Own"}, "_name_or_path": "x", "transformers_version": "4.0"}
    config = read(tmp_path, model_type="own", **code)
    assert config.needs_code
    assert config.values == {"model_type": "own"}
    assert not read(tmp_path, model_type="sparsellama", **code).needs_code
    assert not read(tmp_path, model_type="own", auto_map={"AutoModel": "Own"}).needs_code  # a bare class name


@pytest.mark.parametrize(
    ("parameter", "threshold", "thresholds"),
    [(0.01, 0.01, ()), (0, 0.0, ()), ([0.25, 0.25], 0.25, ()), ([0.5, 0.25], 0.25, (0.5, 0.25))],
)
def test_thresholds(parameter: Any, threshold: float, thresholds: tuple[float, ...], tmp_path: Path) -> None:
    config = read(tmp_path, model_type="llama", hidden_act="fatrelu", hidden_act_param=parameter)
    assert (config.threshold, config.thresholds) == (threshold, thresholds)


def test_other_activations_have_no_threshold(tmp_path: Path) -> None:
    config = read(tmp_path, model_type="llama", hidden_act="relu", hidden_act_param=0.01)
    assert (config.activation, config.threshold, config.thresholds) == ("relu", 0.0, ())


@pytest.mark.parametrize("parameter", [None, "0.01", True, -0.1, float("inf"), float("nan"), [0.1, None], []])
def test_fatrelu_needs_a_threshold(parameter: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hidden_act is fatrelu: expected hidden_act_param to be its threshold"):
        read(tmp_path, model_type="llama", hidden_act="fatrelu", hidden_act_param=parameter)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": "Own"}, "architectures: expected a JSON list, got 'Own'"),
        ({"model_type": 7}, "model_type: expected a JSON string, got 7"),
        ({"auto_map": ["x"]}, r"auto_map: expected a JSON object, got \['x'\]"),
        ({"quantization_config": {"bits": 4}}, "expected float weights, got a quantized checkpoint"),
    ],
)
def test_wrong_fields(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, **values)
    assert str(caught.value).startswith(f"config.json: {tmp_path / 'config.json'}: ")
    assert caught.value.hint


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for folder, message in ((tmp_path / "no", "no such folder"), (tmp_path, r"no config\.json found")):
        with pytest.raises(CheckpointError, match=message):
            read_model_config(folder)
    for text, message in (("{", "expected JSON, got "), ("[]", "expected a JSON object, got list")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_model_config(tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder, got a file"):
        read_model_config(path)
