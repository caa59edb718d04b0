"""Model folders are written completely or not at all; checkpoints count when they are complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.training_models import LLAMA, build, byte_tokenizer
from transformers import LlamaConfig

from prosparse_models.training.saving import RUN_FILE, complete_checkpoints, copy_model_folder, write_model
from prosparse_models.training.trainer import last_good


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    model = build(LlamaConfig(**LLAMA))
    write_model(tmp_path / "m", model, byte_tokenizer(), {}, torch.bfloat16)
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 (not a dictionary)
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"


def make_source(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "README.md", "modeling.py"):
        (folder / name).write_text(name)
    (folder / "checkpoints").mkdir()
    return folder


@pytest.mark.parametrize("has_code", [False, True])
def test_copy_replaces_the_folder(has_code: bool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {"a": 1, "b": 2, **({"auto_map": {}} if has_code else {})})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old").write_text("old")
    copy_model_folder(source, tmp_path / "copy", {"b": 3}, {"record.json": {"c": 4}})
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"config.json", "model.safetensors", "record.json"} | ({"modeling.py"} if has_code else set())
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["b"] == 3
    assert json.loads((tmp_path / "copy" / "record.json").read_text()) == {"c": 4}
    assert json.loads((source / "config.json").read_text())["b"] == 2


def test_failed_copy_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old").write_text("old")
    with pytest.raises(TypeError):
        copy_model_folder(source, tmp_path / "copy", {}, {"record.json": {"not for JSON": object()}})
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "copy"}


def test_incomplete_checkpoints_do_not_count(tmp_path: Path) -> None:
    assert last_good(tmp_path / "none") == ""
    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 11:  # interrupted
            (folder / RUN_FILE).write_text("{}")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert last_good(tmp_path) == f"the last good checkpoint is {tmp_path / 'checkpoint-10'}: "
