"""Check a command's output paths before minutes of work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prosparse_export.errors import ProSparseError

__all__ = ["check_outputs"]


def check_outputs(paths: Iterable[Path | None], *, overwrite: bool) -> None:
    """Check that a file can be written to each of ``paths``; None is skipped.

    Raises:
        ProSparseError: the file already exists, the path is a folder, or its folder does not exist.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ProSparseError(f"output: {path}: expected a file name, got a folder", hint="add a file name")
        if path.exists() and not overwrite:
            raise ProSparseError(f"output: {path}: already exists", hint="choose another name or pass --overwrite")
        if not path.parent.is_dir():
            raise ProSparseError(f"output: {path}: its folder does not exist", hint=f"mkdir -p {path.parent}")
