"""Write a model folder: all of it, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = [
    "RUN_FILE",
    "add_config_fields",
    "complete_checkpoints",
    "copy_model_folder",
    "move_into",
    "write_json",
    "write_model",
]

RUN_FILE = "prosparse_run.json"  # written last into a checkpoint: one without it is incomplete


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fields: Mapping[str, Any],
    dtype: torch.dtype,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write config.json, safetensors and tokenizer into ``folder``, which is made anew.

    Args:
        folder: a staging folder; `move_into` brings it to its place.
        model: gives the config and, unless ``state`` is given, the weights.
        tokenizer: is saved beside them.
        fields: fields of config.json besides transformers' own.
        dtype: dtype of the floating-point weights on disk.
        state: the weights, if ``model`` holds shards of them only.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = model.state_dict() if state is None else state
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one tensor: written once
    for w in weights.values():
        cast.setdefault((w.data_ptr(), w.shape), w.to(dtype) if w.is_floating_point() else w)
    model.save_pretrained(folder, state_dict={name: cast[w.data_ptr(), w.shape] for name, w in weights.items()})
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)  # transformers leaves them private to the user
    add_config_fields(folder, {**fields, "dtype": str(dtype).removeprefix("torch.")})


def add_config_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Set ``fields`` in ``folder/config.json``."""
    path = folder / "config.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **fields})


def move_into(staging: Path, folder: Path) -> None:
    """Move the files of ``staging`` into ``folder``, config.json last, and remove ``staging``.

    Without config.json a folder is no model folder, so an interruption leaves none that loads half of it.
    """
    (folder / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda p: p.name == "config.json"):
        path.replace(folder / path.name)
    staging.rmdir()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON, aside and renamed."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def copy_model_folder(
    source: Path, folder: Path, fields: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
) -> None:
    """Copy the model in ``source`` (not subfolders, not its card) to ``folder``, change config.json, add JSON files.

    Written aside and renamed; a ``folder`` that exists is replaced at the end.

    Args:
        source: a model folder.
        folder: where the copy goes.
        fields: fields of config.json.
        documents: JSON files by name; they replace those of ``source``.
    """
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    settings = [path.read_text(encoding="utf-8") for path in source.glob("*config.json")]
    has_code = any("auto_map" in text for text in settings)
    for path in source.iterdir():
        # The card describes another model, and code that the model does not need is none of its files.
        if path.is_file() and path.name != "README.md" and (has_code or path.suffix != ".py"):
            shutil.copyfile(path, aside / path.name)  # follows links: a Hub cache folder holds links
    add_config_fields(aside, fields)
    for name, values in documents.items():
        write_json(aside / name, values)
    if folder.is_dir():
        shutil.rmtree(folder)
    aside.rename(folder)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the training checkpoints in ``folder`` that were written to the end, the newest last."""
    found = (p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (p / RUN_FILE).is_file())
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))
