"""Weight files are present and whole, and their tensors are those of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prosparse_models import CheckpointError
from prosparse_models.loading.weight_files import check_complete, check_weight_files, stored_dtype

INDEX = "model.safetensors.index.json"


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def write_index(folder: Path, *names: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}}))


def test_files(tmp_path: Path) -> None:
    two = write(tmp_path / "b.safetensors", w=torch.ones(2))
    one = write(tmp_path / "a.safetensors", w=torch.ones(2))
    assert check_weight_files(tmp_path) == (one, two)
    write_index(tmp_path, "b.safetensors", "b.safetensors")
    assert check_weight_files(tmp_path) == (two,)  # the index decides


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file found"):
        check_weight_files(tmp_path)
    pickled = tmp_path / "pytorch_model.bin"
    pickled.touch()
    assert check_weight_files(tmp_path) == (pickled,)
    write_index(tmp_path, "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: not found, although {INDEX} lists it"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"w": ["x"]}}'])
def test_damaged_indices(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: expected a JSON object with a weight_map, got "):
        check_weight_files(tmp_path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", w=torch.ones(64))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"not a valid safetensors file \({path.stat().st_size} bytes\)"):
        check_weight_files(tmp_path)


def test_the_type_of_most_matrix_elements(tmp_path: Path) -> None:
    one = write(tmp_path / "a.safetensors", w=torch.ones(4, 4, dtype=torch.bfloat16), n=torch.ones(99))
    assert stored_dtype((one,)) == "bfloat16"
    two = write(tmp_path / "b.safetensors", w=torch.ones(3, 6))
    assert stored_dtype((one, two)) == "float32"  # 18 elements, and 16
    assert stored_dtype((write(tmp_path / "c.safetensors", n=torch.ones(4)),)) == ""
    assert stored_dtype((one, tmp_path / "pytorch_model.bin")) == ""
    assert stored_dtype(()) == ""


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"missing_keys": {"b", "a"}}, "2 parameters have no tensor in the files: a, b"),
        ({"missing_keys": list("dcba")}, "4 parameters have no tensor in the files: a, b, c ..."),
        (
            {"mismatched_keys": [("w", (2, 3), (3, 3))]},
            "w: expected shape [3, 3] from config.json, got [2, 3]",
        ),
        ({"unexpected_keys": ["mlp.bias"]}, "1 tensors are not in the model of config.json: mlp.bias"),
    ],
)
def test_incomplete_weights(info: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_complete(Path("m"), info)
    assert str(caught.value) == f"weights: m: {message}"
    assert caught.value.hint


def test_tensors_that_the_model_does_not_need() -> None:
    names = ["rotary.inv_freq", "h.attn.bias", "h.attn.masked_bias", "cls.dense", "lm_head.weight", "predictor.0"]
    check_complete(Path("m"), {"unexpected_keys": names})
    check_complete(Path("m"), {})
