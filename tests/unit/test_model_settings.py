"""Settings in the files next to a graph; damaged files are named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DEMO

from prosparse_export import ProSparseError
from prosparse_export.artifact.model_settings import context_length, read_tokenizer, require_tokenizer, stop_tokens


@pytest.mark.parametrize(
    ("name", "read"),
    [("tokenizer.json", read_tokenizer), ("config.json", context_length), ("config.json", stop_tokens)],
)
@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_settings_are_named(tmp_path: Path, name: str, read: Callable[[Path], object], text: str) -> None:
    assert not read(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ProSparseError, match=f"^{name}: .*{name}: expected .*, got: ") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def write(folder: Path, name: str, values: dict[str, object]) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def test_stop_tokens(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"eos_token_id": 2})
    assert stop_tokens(tmp_path) == {2}
    write(tmp_path, "generation_config.json", {"eos_token_id": None})
    assert stop_tokens(tmp_path) == {2}
    write(tmp_path, "generation_config.json", {"eos_token_id": [3, 4]})
    assert stop_tokens(tmp_path) == {3, 4}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({"max_position_embeddings": 64, "text_config": {"max_position_embeddings": 16}}, 64),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "many"}, None),
        ({}, None),
    ],
)
def test_context_length(config: dict[str, object], length: int | None, tmp_path: Path) -> None:
    write(tmp_path, "config.json", config)
    assert context_length(tmp_path) == length


def test_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ProSparseError, match=f"tokenizer: {tmp_path}: no tokenizer.json") as error:
        require_tokenizer(tmp_path)
    assert "copy the tokenizer files next to the .onnx file" in str(error.value.hint)
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    assert require_tokenizer(tmp_path).encode("a").ids
