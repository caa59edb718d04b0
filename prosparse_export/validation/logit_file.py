"""Logits on disk, so that those of a long text are never all in memory.

The file is a safetensors file, written front to back. Tensors:
``logits`` [positions, vocabulary] float32, in window order; ``prompt.K.ids``,
``prompt.K.logits``, ``prompt.K.greedy``, ``prompt.K.gaps`` for each prompt.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError

__all__ = ["LogitFile", "LogitWriter"]

_NAMES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


class LogitWriter:
    """Writes a logit file: the small tensors first, then the logits as they are computed.

    Args:
        target: the file, created when `finish` is called; None for an unnamed temporary file in ``scratch``.
        scratch: folder of the temporary file.
        metadata: strings for the header.
        small: the tensors that are already known.
        rows: total positions.
        vocabulary: columns of ``logits``.

    Raises:
        ProSparseError: the disk is too full, or the folder is not writable.
    """

    def __init__(
        self,
        target: Path | None,
        scratch: Path,
        metadata: Mapping[str, str],
        small: Mapping[str, NDArray[Any]],
        rows: int,
        vocabulary: int,
    ) -> None:
        self._target, self._rows, self._vocabulary = target, rows, vocabulary
        folder = target.parent if target is not None else scratch
        size = rows * vocabulary * 4
        self._stream, self._partial = _open(target, folder, size)
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, array in small.items():
            kind = "I64" if array.dtype.kind == "i" else "F32"
            length = array.size * _NAMES[kind].itemsize
            entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + length]}
            offset += length
        entries["logits"] = {"dtype": "F32", "shape": [rows, vocabulary], "data_offsets": [offset, offset + size]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        self._stream.write(struct.pack("<Q", len(header)) + header)
        for array in small.values():
            self._stream.write(np.ascontiguousarray(array, _NAMES["I64" if array.dtype.kind == "i" else "F32"]).data)
        self._written = 0

    def add(self, logits: NDArray[np.float32]) -> None:
        """Append rows ``[tokens, vocabulary]``."""
        self._written += len(logits)
        try:
            self._stream.write(np.ascontiguousarray(logits, "<f4").data)
        except OSError as error:
            self.discard()
            raise ProSparseError(f"reference: cannot write logits: {error.strerror}", hint="free disk space") from error

    def finish(self) -> LogitFile:
        """Return the file opened for reading; a named file is moved into place."""
        assert self._written == self._rows, (self._written, self._rows)
        self._stream.flush()
        if self._target is None:
            return LogitFile(self._stream, "scratch")
        self._stream.close()
        assert self._partial is not None
        os.replace(self._partial, self._target)
        return LogitFile.open(self._target)

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._stream.close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)


class LogitFile:
    """A logit file opened for reading; rows are read on request."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        stream.seek(0, os.SEEK_END)
        size = stream.tell()
        stream.seek(0)
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        try:
            if not 2 <= length <= min(size - 8, 1 << 27):
                raise ValueError("no header")
            entries = json.loads(stream.read(length))
            self.metadata: dict[str, str] = entries.pop("__metadata__")
            self._entries = {
                key: (_NAMES[e["dtype"]], tuple(e["shape"]), e["data_offsets"][0]) for key, e in entries.items()
            }
            ends = [e["data_offsets"][1] for e in entries.values()]
            self.rows, self.vocabulary = self._entries["logits"][1]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProSparseError(
                f"reference: {name}: not a file written by --save-reference",
                hint="write it again with --save-reference",
            ) from error
        self._begin = 8 + length
        if size < self._begin + max(ends):
            raise ProSparseError(
                f"reference: {name}: expected {self._begin + max(ends)} bytes, got {size}: the file is truncated",
                hint="write it again with --save-reference",
            )

    @classmethod
    def open(cls, path: Path) -> LogitFile:
        """Open a named file.

        Raises:
            ProSparseError: the file cannot be read or is not a complete logit file.
        """
        try:
            stream = path.open("rb")
        except OSError as error:
            raise ProSparseError(
                f"reference: {path}: cannot be read: {error.strerror}", hint="write it with --save-reference"
            ) from error
        try:
            return cls(stream, str(path))
        except ProSparseError:
            stream.close()
            raise

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a small tensor."""
        dtype, shape, offset = self._entries[name]
        return self._read(dtype, offset, shape)

    def logits(self, first: int, count: int) -> NDArray[np.float32]:
        """Return rows ``first`` to ``first + count``, ``[count, vocabulary]``."""
        dtype, (rows, columns), offset = self._entries["logits"]
        assert first + count <= rows
        return self._read(dtype, offset + first * columns * 4, (count, columns))

    def _read(self, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        self._stream.seek(self._begin + offset)
        buffer = bytearray(int(np.prod(shape)) * dtype.itemsize)
        self._stream.readinto(buffer)  # type: ignore[attr-defined]
        return np.frombuffer(buffer, dtype).reshape(shape)

    def close(self) -> None:
        """Close the file; a temporary file is deleted."""
        self._stream.close()


def _open(target: Path | None, folder: Path, size: int) -> tuple[IO[bytes], Path | None]:
    for place in (folder, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(place).free
            if free < size + (1 << 20):
                raise ProSparseError(
                    f"reference: {place}: expected {size:,} bytes free for the logits, got {free:,}",
                    hint="free disk space, or compare fewer tokens with --max-tokens",
                )
            if target is None:
                return tempfile.TemporaryFile(dir=place), None
            number, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=place)
            return os.fdopen(number, "wb"), Path(name)
        if target is not None:
            break
    raise ProSparseError(f"reference: {folder}: not writable", hint="choose a writable folder")
