"""What the files beside a graph say about generation: tokenizer, end of text, length of the context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prosparse_export.errors import ProSparseError

__all__ = ["context_in", "context_length", "read_tokenizer", "stop_tokens"]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return tokenizer.json's tokenizer, or None if there is no such file.

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


def _damaged(path: Path, expected: str, error: Exception) -> ProSparseError:
    return ProSparseError(
        f"{path.name}: {path}: expected {expected}, got: {error}", hint="copy the file again from where it came from"
    )


def _settings(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, empty where there is no such file."""
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
    """Return eos_token_id of generation_config.json, else of config.json: a number, a list or nothing.

    Raises:
        ProSparseError: a file is damaged.
    """
    for name in ("generation_config.json", "config.json"):
        stop = _settings(folder / name).get("eos_token_id")
        if stop is not None:
            return frozenset([stop] if isinstance(stop, int) else stop)
    return frozenset()


def context_length(folder: Path) -> int | None:
    """Return the longest text, in tokens, that config.json states, or None.

    Raises:
        ProSparseError: the file is damaged.
    """
    return context_in(_settings(folder / "config.json"))


def context_in(config: Mapping[str, Any]) -> int | None:
    """Return max_position_embeddings (GPT-2: n_positions), also of a composed model's text part, or None."""
    for part in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions"):
            length = part.get(name)
            if isinstance(length, int) and length > 0:
                return length
    return None
