"""A file is replaced whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.atomic_write import atomic_write


def test_writes_text_and_keeps_permissions(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    atomic_write(target, "ä")
    assert target.read_bytes() == "ä".encode()
    target.chmod(0o600)
    atomic_write(target, b"new")
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o600)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    error: BaseException | type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((KeyboardInterrupt, ProSparseError)):
        atomic_write(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text() == "old"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProSparseError, match="cannot write: No such file or directory") as caught:
        atomic_write(tmp_path / "missing" / "page.html", "x")
    assert caught.value.hint
