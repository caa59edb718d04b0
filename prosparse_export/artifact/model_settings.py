"""Settings in the files next to a graph: tokenizer, end tokens, context length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prosparse_export.errors import ProSparseError

__all__ = [
    "context_in",
    "context_length",
    "missing_tokenizer",
    "read_settings",
    "read_tokenizer",
    "require_tokenizer",
    "stop_tokens",
]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in tokenizer.json, or None if there is no such file.

    Raises:
        ProSparseError: the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise _damaged(path, "a tokenizer of the tokenizers library", error) from error


def require_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer in tokenizer.json.

    Raises:
        ProSparseError: the file is missing or damaged.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise missing_tokenizer(folder)
    return tokenizer


def missing_tokenizer(folder: Path) -> ProSparseError:
    """Return the error for a folder without tokenizer.json."""
    return ProSparseError(
        f"tokenizer: {folder}: no tokenizer.json",
        hint="export again from a folder that has tokenizer.json, or copy the tokenizer files next to the .onnx file; "
        "in Python, stream() takes token ids",
    )


def _damaged(path: Path, expected: str, error: Exception) -> ProSparseError:
    return ProSparseError(
        f"{path.name}: {path}: expected {expected}, got: {error}", hint="copy the file again from the original model"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file.

    Raises:
        ProSparseError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, "a JSON object", error) from error
    if not isinstance(values, dict):
        raise _damaged(path, "a JSON object", ValueError(type(values).__name__))
    return values


def stop_tokens(folder: Path) -> frozenset[int]:
    """Return eos_token_id of generation_config.json or else of config.json, which may be a number or a list.

    Raises:
        ProSparseError: a file is damaged.
    """
    for name in ("generation_config.json", "config.json"):
        stop = read_settings(folder / name).get("eos_token_id")
        if stop is not None:
            return frozenset([stop] if isinstance(stop, int) else stop)
    return frozenset()


def context_length(folder: Path) -> int | None:
    """Return the context length in tokens according to config.json, or None.

    Raises:
        ProSparseError: the file is damaged.
    """
    return context_in(read_settings(folder / "config.json"))


def context_in(config: Mapping[str, Any]) -> int | None:
    """Return max_position_embeddings (GPT-2: n_positions) of a config or of its text_config, or None."""
    for part in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions"):
            length = part.get(name)
            if isinstance(length, int) and length > 0:
                return length
    return None
