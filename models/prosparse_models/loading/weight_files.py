"""The weight files of a model folder: checked before anything large is read, and for completeness afterwards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prosparse_models.errors import CheckpointError

__all__ = ["check_complete", "check_weight_files", "stored_dtype"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_INDEX = "model.safetensors.index.json"
# Tensors that the model does not need: buffers, heads of other tasks, activation predictors, a tied lm_head.
_IGNORED = re.compile(r"inv_freq$|masked_bias$|attn\.bias$|position_ids$|^cls\.|predictor|^lm_head\.weight$")


def check_weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of ``folder`` after opening each one's header.

    A safetensors header gives every tensor's offsets, so a truncated file is found within milliseconds.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or a file is damaged.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"weights: {index}: expected a JSON object with a weight_map, got {error!r}",
                hint="copy the index file from its source again",
            ) from error
        files = [folder / str(name) for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled:  # transformers loads these with weights_only=True: no code runs
            return tuple(pickled)
        raise CheckpointError(
            f"weights: {folder}: no *.safetensors file found",
            hint="copy the weight files next to config.json",
        )
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"weights: {path}: not found, although {_INDEX} lists it",
                hint="copy all shards",
            )
        try:
            with safe_open(path, framework="numpy") as shard:
                shard.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"weights: {path}: not a valid safetensors file ({path.stat().st_size} bytes): {error}",
                hint="the file was probably truncated: copy it again",
            ) from error
    return tuple(files)


def stored_dtype(files: tuple[Path, ...]) -> str:
    """Return the float type of most matrices in the safetensors ``files``, or "" if unknown.

    Some released config.json files say bfloat16 while the weights are float32.
    """
    elements: dict[str, int] = {}
    for path in files:
        if path.suffix != ".safetensors":
            return ""
        with safe_open(path, framework="numpy") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dictionary)
                part = shard.get_slice(name)
                shape = part.get_shape()
                if len(shape) > 1:
                    dtype = part.get_dtype()
                    elements[dtype] = elements.get(dtype, 0) + math.prod(shape)
    return _DTYPES.get(max(elements, key=lambda dtype: elements[dtype]), "") if elements else ""


def check_complete(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise unless the weights fill the model: transformers would initialize the rest at random.

    Args:
        folder: the model folder.
        info: transformers' loading info: missing, mismatched and unexpected keys.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not part of the model.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise CheckpointError(
            f"weights: {folder}: {len(missing)} parameters have no tensor in the files: {_first(missing)}",
            hint="copy all shards, or check that config.json belongs to these weights",
        )
    for name, stored, expected in sorted(info.get("mismatched_keys") or ()):
        raise CheckpointError(
            f"weights: {folder}: {name}: expected shape {list(expected)} from config.json, got {list(stored)}",
            hint="check that config.json belongs to these weights",
        )
    unexpected = sorted(k for k in info.get("unexpected_keys") or () if not _IGNORED.search(k))
    if unexpected:
        raise CheckpointError(
            f"weights: {folder}: {len(unexpected)} tensors are not in the model of config.json: {_first(unexpected)}",
            hint="check config.json for a missing setting, such as mlp_bias",
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
