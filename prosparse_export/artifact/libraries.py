"""Operator libraries in an artifact: lib/PLATFORM/FILE for each platform."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from prosparse_export.artifact.integrity import sha256_file
from prosparse_export.artifact.manifest import LibraryRecord, require_manifest
from prosparse_export.artifact.platforms import library_file
from prosparse_export.errors import ProSparseError

__all__ = [
    "check_libraries",
    "check_whole",
    "library_in_artifact",
    "library_problems",
    "library_record",
    "library_version",
]

_VERSION = re.compile(rb"prosparse_ops version ([0-9A-Za-z.+-]+)")  # native/ort/register.cc


def library_in_artifact(platform: str) -> str:
    """Return the path of ``platform``'s library below an artifact's folder, with forward slashes."""
    return f"lib/{platform}/{library_file(platform)}"


def library_version(path: Path) -> str:
    """Return the version that a library of any platform states, without loading it.

    Raises:
        ProSparseError: it is not an operator library.
    """
    found = _VERSION.search(path.read_bytes())
    if found is None:
        raise ProSparseError(
            f"operator library: {path}: expected the version of a com.prosparse library in it, found none",
            hint="reinstall the package; in a checkout, build it again: make libraries",
        )
    return found[1].decode()


def check_whole(path: Path) -> None:
    """Check that an ELF library is not cut off: the system's loader would end the process with a bus error.

    Raises:
        ProSparseError: the file ends before its section headers, which come last.
    """
    with path.open("rb") as stream:
        header = stream.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\2\1":  # 64 bits, little-endian; others are the loader's to judge
        return
    (sections,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<2H", header, 58)
    end, found = sections + size * count, path.stat().st_size
    if found < end:
        raise ProSparseError(
            f"operator library: {path}: expected at least {end:,} bytes, got {found:,}",
            hint="the file is truncated: copy it again, or reinstall prosparse-export",
        )


def library_record(platform: str, path: Path, version: str) -> LibraryRecord:
    """Return the manifest's entry for ``platform``'s library ``path``."""
    return LibraryRecord(library_in_artifact(platform), version, path.stat().st_size, sha256_file(path))


def library_problems(folder: Path, libraries: Mapping[str, LibraryRecord]) -> Iterator[tuple[str, str]]:
    """Yield platform and problem (``missing``, ``damaged``) of each recorded library that is not as it was written."""
    for platform, record in libraries.items():
        path = folder / record.file
        if not path.is_file():
            yield platform, "missing"
        elif sha256_file(path) != record.sha256:
            yield platform, "damaged"


def check_libraries(path: Path) -> int:
    """Compare the libraries next to the graph ``path`` with prosparse.json; return how many are there.

    A library that was left out of a copy is no error: other platforms' are not needed.

    Raises:
        ProSparseError: one has other contents.
    """
    libraries = require_manifest(path).libraries
    problems = dict(library_problems(path.parent, libraries))
    for platform, problem in problems.items():
        if problem == "damaged":
            file = path.parent / libraries[platform].file
            raise ProSparseError(
                f"artifact: {file}: expected SHA-256 {libraries[platform].sha256[:12]}, got {sha256_file(file)[:12]}",
                hint="it is damaged or was replaced: copy the artifact again, and do not load this library",
            )
    return len(libraries) - len(problems)
