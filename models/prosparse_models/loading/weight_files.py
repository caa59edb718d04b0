"""The weight files of a model folder, checked before anything large is read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from prosparse_models.errors import CheckpointError

__all__ = ["check_weight_files", "stored_dtype"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_INDEX = "model.safetensors.index.json"


def check_weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of ``folder`` after opening each one's header.

    A safetensors header states every tensor's extent, so a truncated file is found here, by its
    length, in milliseconds.

    Raises:
        CheckpointError: no weights, a shard that the index names is missing, or a damaged file.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"weights: {index}: expected a JSON object with a weight_map, got {error!r}",
                hint="copy the index file again from where it came",
            ) from error
        files = [folder / str(name) for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled:  # transformers reads these with torch.load(weights_only=True): data, no code
            return tuple(pickled)
        raise CheckpointError(
            f"weights: {folder}: expected *.safetensors, got none",
            hint="copy the weight files beside config.json",
        )
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"weights: {path}: expected a shard that {_INDEX} names, got nothing there",
                hint="copy all shards",
            )
        try:
            with safe_open(path, framework="numpy") as shard:
                shard.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"weights: {path}: expected a whole safetensors file, got {path.stat().st_size} bytes: {error}",
                hint="the copy was probably cut off: copy the file again",
            ) from error
    return tuple(files)


def stored_dtype(files: tuple[Path, ...]) -> str:
    """Return the float type that most matrices of the safetensors ``files`` have, or "" if that cannot be told.

    Some released folders state bfloat16 and hold float32.
    """
    elements: dict[str, int] = {}
    for path in files:
        if path.suffix != ".safetensors":
            return ""
        with safe_open(path, framework="numpy") as shard:
            for name in shard.keys():  # noqa: SIM118 (it is no dictionary)
                part = shard.get_slice(name)
                shape = part.get_shape()
                if len(shape) > 1:
                    dtype = part.get_dtype()
                    elements[dtype] = elements.get(dtype, 0) + math.prod(shape)
    return _DTYPES.get(max(elements, key=lambda dtype: elements[dtype]), "") if elements else ""
