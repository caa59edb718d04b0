"""Write a file completely or not at all; disk errors as user errors."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prosparse_export.errors import ProSparseError

__all__ = ["atomic_write", "disk_errors"]

_REASONS = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota exceeded"}


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write ``data``, text as UTF-8, to ``path``. On failure, the previous file stays as it was.

    A file that is replaced keeps its permissions.

    Raises:
        ProSparseError: the folder cannot be written to, or the disk is full.
    """
    name = None
    with disk_errors(path):
        try:
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o644  # mkstemp creates files with mode 600
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data.encode() if isinstance(data, str) else data)
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            if name is not None:
                Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a ProSparseError about ``path``, a file or folder being written.

    Raises:
        ProSparseError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        if error.errno is None and " requested and " in reason:  # numpy.tofile: no errno, but the bytes written
            reason = f"disk full ({reason})"
        raise ProSparseError(
            f"output: {path}: cannot write: {reason}",
            hint="choose a folder that is writable and has enough free space",
        ) from error
