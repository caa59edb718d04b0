"""Hashes of a source's files, computed in the background."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prosparse_export.export import file_hashes
from prosparse_export.export.file_hashes import FileHashes


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "empty")]
    contents = [b"a" * 3_000_001, b"b", b""]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    with FileHashes() as hashes:
        hashes.start(paths[:1])
        hashes.start(paths[:2])
        assert [hashes.of(path) for path in paths] == [hashlib.sha256(content).hexdigest() for content in contents]


def test_a_file_that_cannot_be_read_is_an_error_when_asked_for(tmp_path: Path) -> None:
    with FileHashes() as hashes:
        hashes.start([tmp_path / "none"])
        with pytest.raises(FileNotFoundError):
            hashes.of(tmp_path / "none")


def test_the_end_of_the_context_gives_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = threading.Event()
    gave_up: list[bool] = []

    def endless(path: Path, ended: Callable[[], bool]) -> str:
        begun.set()
        for _ in range(1000):  # 10 s
            if ended():
                gave_up.append(True)
                break
            time.sleep(0.01)
        return ""

    monkeypatch.setattr(file_hashes, "sha256_file", endless)
    with FileHashes() as hashes:
        hashes.start([tmp_path / "endless", tmp_path / "never begun"])
        assert begun.wait(10)
    assert gave_up == [True]
