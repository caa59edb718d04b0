"""Write model folders completely or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prosparse_export.atomic_write import atomic_write, disk_errors

__all__ = [
    "RUN_FILE",
    "add_config_fields",
    "complete_checkpoints",
    "copy_model_folder",
    "move_into",
    "write_json",
    "write_model",
]

RUN_FILE = "prosparse_run.json"  # written last into a checkpoint; without it, the checkpoint is incomplete


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fields: Mapping[str, Any],
    dtype: torch.dtype,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write config.json, safetensors and tokenizer into ``folder``, which is emptied first.

    Args:
        folder: a staging folder; `move_into` moves its files to their place.
        model: its config is written, and its weights unless ``state`` is given.
        tokenizer: written too.
        fields: fields added to transformers' config.json.
        dtype: dtype of the floating-point weights on disk.
        state: the weights, if ``model`` holds only shards of them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = model.state_dict() if state is None else state
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one tensor, written once
    for w in weights.values():
        cast.setdefault((w.data_ptr(), w.shape), w.to(dtype) if w.is_floating_point() else w)
    model.save_pretrained(folder, state_dict={name: cast[w.data_ptr(), w.shape] for name, w in weights.items()})
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # transformers makes them readable by the owner only
    add_config_fields(folder, {**fields, "dtype": str(dtype).removeprefix("torch.")})


def add_config_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Set ``fields`` in ``folder/config.json``."""
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **fields})


def move_into(staging: Path, folder: Path) -> None:
    """Move the files of ``staging`` into ``folder``, config.json last, and remove ``staging``.

    A folder without config.json is not a model folder, so an interrupted move leaves nothing that loads.
    """
    (folder / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda p: p.name == "config.json"):
        path.replace(folder / path.name)
    staging.rmdir()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON, completely or not at all."""
    atomic_write(path, json.dumps(values, indent=2) + "\n")


def copy_model_folder(
    source: Path, folder: Path, fields: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
) -> None:
    """Copy the model in ``source`` (without subfolders and the model card) to ``folder``, changing config.json.

    The copy is complete or absent: it is written next to ``folder`` and renamed. An existing ``folder`` is replaced.

    Args:
        source: a model folder.
        folder: the copy.
        fields: fields to set in config.json.
        documents: JSON files to add, by name; they replace those of ``source``.
    """
    settings = [path.read_text(encoding="utf-8") for path in source.glob("*config.json")]
    has_code = any("auto_map" in text for text in settings)
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        with disk_errors(folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for path in source.iterdir():
                # The card describes the original model, and Python files without auto_map are not part of a model.
                if path.is_file() and path.name != "README.md" and (has_code or path.suffix != ".py"):
                    shutil.copyfile(path, aside / path.name)  # follows symlinks, as in the Hub's cache
            add_config_fields(aside, fields)
            for name, values in documents.items():
                write_json(aside / name, values)
            if folder.is_dir():
                shutil.rmtree(folder)
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete training checkpoints in ``folder``, the newest last."""
    found = (p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (p / RUN_FILE).is_file())
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))
