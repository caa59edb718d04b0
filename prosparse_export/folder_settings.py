"""What the files beside a graph say about generation: tokenizer, end of text, length of the context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

__all__ = ["context_in", "context_length", "read_tokenizer", "stop_tokens"]


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
    """Return the longest text, in tokens, that config.json states, or None."""
    path = folder / "config.json"
    return context_in(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def context_in(config: Mapping[str, Any]) -> int | None:
    """Return max_position_embeddings (GPT-2: n_positions), also of a composed model's text part, or None."""
    for part in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions"):
            length = part.get(name)
            if isinstance(length, int) and length > 0:
                return length
    return None
