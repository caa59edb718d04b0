"""Files of our own, written beside their place and moved there whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prosparse_export.errors import ProSparseError

__all__ = ["write_aside"]


def write_aside(path: Path, data: str | bytes) -> None:
    """Write ``data``, text as UTF-8, to ``path``: all of it, or what was there before stays.

    A file that is replaced keeps its permissions.

    Raises:
        ProSparseError: the folder cannot be written to, or the disk is full.
    """
    name = None
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644  # mkstemp's file is the owner's alone
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ProSparseError(
            f"output: {path}: cannot be written: {error.strerror}", hint="choose a folder that you may write to"
        ) from error
