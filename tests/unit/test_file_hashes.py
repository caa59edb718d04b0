"""Hashes of a source's files, computed in the background."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file without an end")
def test_the_end_of_the_context_gives_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")
    ended = threading.Event()

    def write() -> None:
        with (tmp_path / "endless").open("wb") as stream:
            try:
                while not ended.is_set():
                    stream.write(b"0" * (1 << 20))
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with FileHashes() as hashes:
        hashes.start([tmp_path / "endless"])
    ended.set()
    writer.join(10)
    assert not writer.is_alive()
