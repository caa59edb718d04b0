"""The tokenizer of a model folder: loaded without running code, or one line that says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT
from support.training_models import byte_tokenizer

from prosparse_models import CheckpointError
from prosparse_models.loading.tokenizer import load_tokenizer


def test_saved_tokenizer_is_the_loaded_one(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "a")
    tokenizer = load_tokenizer(tmp_path / "a")
    assert tokenizer("skip zeros")["input_ids"] == byte_tokenizer()("skip zeros")["input_ids"]
    tokenizer.save_pretrained(tmp_path / "b")
    assert "local_files_only" not in json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'], ids=["missing", "damaged", "no model"])
def test_unusable_tokenizer_is_one_line(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match=rf"^tokenizer: {tmp_path}: ") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value.hint)


def test_no_other_module_loads_tokenizers() -> None:
    folders = (ROOT / "prosparse_export", ROOT / "models" / "prosparse_models")
    loaders = [
        path.name
        for folder in folders
        for path in folder.rglob("*.py")
        if "AutoTokenizer" in path.read_text(encoding="utf-8")
    ]
    assert loaders == ["tokenizer.py"]


def test_code_in_the_folder_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
