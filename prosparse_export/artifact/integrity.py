"""Check that an artifact's files are complete and unchanged. Sizes and hashes come from prosparse.json."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["check_files", "check_model_path", "missing_model", "sha256_file"]

_CHUNK = 64 << 20  # bytes; between two chunks, a thread waits up to 5 ms for other Python code


def sha256_file(path: Path, ended: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        ended: called often; once it returns True, the rest is left out and the result means nothing.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        if not (size := os.fstat(stream.fileno()).st_size):
            return digest.hexdigest()  # cannot be mapped
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            for first in range(0, size, _CHUNK):
                if ended():
                    break
                digest.update(view[first : first + _CHUNK])
    return digest.hexdigest()


def missing_model(path: Path) -> ProSparseError:
    """Return the error for a ``path`` that is not a file, with a hint at what it is instead."""
    if not path.is_dir():
        return ProSparseError(
            f"model: {path}: no such file",
            hint=f"check the path, or create it with: prosparse-export MODEL_DIR {path.with_suffix('.onnx')}",
        )
    found = sorted(path.glob("*.onnx"))
    if found:
        hint = f"pass the file in it: {found[0]}"
    elif (path / "config.json").is_file():
        hint = f"this is a model folder; export it first: prosparse-export {path} OUT.onnx"
    else:
        hint = "check the path"
    return ProSparseError(f"model: {path}: expected an .onnx file, got a folder", hint=hint)


def check_model_path(path: Path) -> None:
    """Check that ``path`` is a file whose name ends in .onnx.

    Raises:
        ProSparseError: it is not.
    """
    if not path.is_file():
        raise missing_model(path)
    if path.suffix == ".onnx":
        return
    graph = path.with_suffix("")
    if path.suffix == ".data" and graph.suffix == ".onnx":
        raise ProSparseError(f"model: {path}: expected an .onnx file, got its weights", hint=f"pass the graph: {graph}")
    raise ProSparseError(
        f"model: {path}: not an ONNX file: expected a name ending in .onnx",
        hint="pass an .onnx file from prosparse-export",
    )


def check_files(path: Path, *, verify: bool = False, progress: ProgressCallback = no_progress) -> int:
    """Check the files that prosparse.json lists for the graph ``path``. Without a manifest, do nothing.

    Args:
        path: the .onnx file.
        verify: read every file and compare its SHA-256; otherwise check only that the weights exist and have the
            right size.
        progress: called before each file is read.

    Returns:
        The number of files checked.

    Raises:
        ProSparseError: a file is missing, has another size, or has other contents.
    """
    manifest = read_manifest(path)
    files = {} if manifest is None else manifest.files
    if path.name not in files:
        if verify:
            raise ProSparseError(
                f"manifest: {path.parent}: expected a prosparse.json with the hash of {path.name}",
                hint="export the model again with this version",
            )
        return 0
    for name, expected in files.items():
        file = path.parent / name
        if not file.is_file():
            raise ProSparseError(
                f"artifact: {file}: no such file (expected {expected.bytes:,} bytes of weights)",
                hint="copy the artifact's whole folder",
            )
        size = file.stat().st_size
        if name != path.name and size != expected.bytes:
            raise ProSparseError(
                f"artifact: {file}: expected {expected.bytes:,} bytes, got {size:,}",
                hint="the copy is incomplete, or it belongs to another model: copy it again",
            )
        if verify:
            progress(f"read {name}", 0, 0)
            digest = sha256_file(file)
            if digest != expected.sha256:
                raise ProSparseError(
                    f"artifact: {file}: expected SHA-256 {expected.sha256[:12]}, got {digest[:12]}",
                    hint="it is damaged, or belongs to another model: copy the artifact again",
                )
    return len(files)
