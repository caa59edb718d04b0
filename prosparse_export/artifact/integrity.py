"""What belongs to an artifact: sizes and hashes written down by the export, checked when a model is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prosparse_export.artifact.writer import read_manifest, sha256_file
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["check_files", "no_model"]


def no_model(path: Path) -> ProSparseError:
    """Return what is to be said where ``path`` should be an .onnx file and is none."""
    if not path.is_dir():
        return ProSparseError(
            f"model: {path}: expected an .onnx file, got no such file",
            hint=f"check the path, or make it with: prosparse-export MODEL_DIR {path.with_suffix('.onnx')}",
        )
    found = sorted(path.glob("*.onnx"))
    if found:
        hint = f"name the file in it: {found[0]}"
    elif (path / "config.json").is_file():
        hint = f"it is a model folder: export it first, with: prosparse-export {path} OUT.onnx"
    else:
        hint = "check the path"
    return ProSparseError(f"model: {path}: expected an .onnx file, got a folder", hint=hint)


def check_files(path: Path, *, verify: bool = False, progress: ProgressCallback = no_progress) -> int:
    """Check the files that prosparse.json lists for the graph ``path``; no manifest, nothing to check.

    Args:
        path: the .onnx file.
        verify: read every file and compare its SHA-256; else only the weights' presence and size, which costs nothing.
        progress: called before each file is read.

    Returns:
        How many files were checked.

    Raises:
        ProSparseError: a file is missing, too short or long, or another one.
    """
    files: Mapping[str, Mapping[str, Any]] = read_manifest(path).get("files", {})
    if path.name not in files:
        if verify:
            raise ProSparseError(
                f"manifest: {path.parent}: expected a prosparse.json with the hashes of {path.name}, got none",
                hint="export the model again with this version",
            )
        return 0
    checked = 0
    for name, expected in files.items():
        file = path.parent / name
        if not file.is_file():
            raise ProSparseError(
                f"artifact: {file}: expected {expected['bytes']:,} bytes of weights, got no such file",
                hint="copy it beside the model: an artifact is all of its folder",
            )
        size = file.stat().st_size
        if name != path.name and size != expected["bytes"]:
            raise ProSparseError(
                f"artifact: {file}: expected {expected['bytes']:,} bytes, got {size:,}",
                hint="the copy was cut off, or it belongs to another model: copy it again",
            )
        if verify:
            progress(f"read {name}", 0, 0)
            digest = sha256_file(file)
            if digest != expected["sha256"]:
                raise ProSparseError(
                    f"artifact: {file}: expected SHA-256 {expected['sha256'][:12]}, got {digest[:12]}",
                    hint="it is damaged or of another model: copy the artifact again",
                )
        checked += 1
    return checked
