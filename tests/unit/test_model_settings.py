"""Damaged files beside a graph are named in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.artifact.model_settings import context_length, read_tokenizer, stop_tokens


@pytest.mark.parametrize(
    ("name", "read"),
    [("tokenizer.json", read_tokenizer), ("config.json", context_length), ("config.json", stop_tokens)],
)
@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_settings_are_named(tmp_path: Path, name: str, read: Callable[[Path], object], text: str) -> None:
    assert not read(tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ProSparseError, match=f"^{name}: .*{name}: expected .*, got: ") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
