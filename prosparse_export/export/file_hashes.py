"""SHA-256 of the source's files, computed beside tracing, which leaves all cores but one idle."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from prosparse_export.artifact.integrity import sha256_file

__all__ = ["FileHashes"]


class FileHashes:
    """Hashes of files. A context: at its end, what is not finished is given up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "hashes")
        self._ended = threading.Event()
        self._found: dict[Path, Future[str]] = {}

    def start(self, paths: Sequence[Path]) -> None:
        """Begin to hash ``paths``; those that have begun already are not hashed again."""
        for path in paths:
            if path not in self._found:
                self._found[path] = self._pool.submit(sha256_file, path, self._ended.is_set)

    def of(self, path: Path) -> str:
        """Return the hash of a file, in hexadecimal; wait for it if need be.

        Raises:
            OSError: it cannot be read.
        """
        self.start([path])
        return self._found[path].result()

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)
