"""What the files beside a graph say about generation: tokenizer, end of text, length of the context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

__all__ = ["context_length", "read_tokenizer", "stop_tokens"]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Return tokenizer.json's tokenizer, or None if there is no such file."""
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def stop_tokens(folder: Path) -> frozenset[int]:
    """Return eos_token_id of generation_config.json, else of config.json: a number, a list or nothing."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        stop = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if stop is not None:
            return frozenset([stop] if isinstance(stop, int) else stop)
    return frozenset()


def context_length(folder: Path) -> int | None:
    """Return config.json's max_position_embeddings, also of a composed model's text part."""
    path = folder / "config.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part in (values, values.get("text_config") or {}):
        length = part.get("max_position_embeddings")
        if isinstance(length, int) and length > 0:
            return length
    return None
