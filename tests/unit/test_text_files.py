"""Errors about text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.text import read_text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"ab\0cd", "binary"),
        ("über".encode("utf-16"), "UTF-16"),
        ("über".encode("latin-1"), "another encoding"),
    ],
)
def test_bad_text(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ProSparseError, match=message) as caught:
        read_text(tmp_path / "x.txt")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint is not None
