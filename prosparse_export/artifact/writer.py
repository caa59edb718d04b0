"""Write the graph and the files next to it: all of them or none."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prosparse_export.artifact.integrity import sha256_file
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.manifest import MANIFEST, FileRecord
from prosparse_export.artifact.platforms import LIBRARY_FILES
from prosparse_export.atomic_write import disk_errors
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = [
    "Sidecars",
    "artifact_folder",
    "write_artifact",
]

_ROOM = 1 << 20  # bytes for everything but the weights


@dataclass(frozen=True)
class Sidecars:
    """Files next to the graph, except for the manifest.

    Attributes:
        documents: contents of JSON files, by name.
        libraries: operator libraries to copy, by platform.
        write: writes more files (the tokenizer's) into a folder.
    """

    documents: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, Path] = field(default_factory=dict)
    write: Callable[[Path], object] | None = None


@contextmanager
def artifact_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a staging folder next to ``output``; its files move into ``output``'s folder at the end.

    If the body raises or is interrupted, everything is as before. ``output`` itself is moved last, so it never
    exists without the files that it needs.

    Raises:
        ProSparseError: a file already exists, the folder holds another artifact or is not writable, or the disk is
            full.
    """
    if output.suffix != ".onnx":
        raise ProSparseError(
            f"output: {output}: expected a file name ending in .onnx", hint=f"for example {output}.onnx"
        )
    if output.is_dir():
        raise ProSparseError(
            f"output: {output}: expected a file name, got a folder", hint=f"for example {output}/m.onnx"
        )
    if output.exists() and not overwrite:
        raise ProSparseError(f"output: {output}: already exists", hint="choose another name or pass --overwrite")
    _check_alone(output)
    created = _make_parents(output.parent)
    staging = None
    try:
        with disk_errors(output.parent):
            staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
            yield staging
            _publish(staging, output, overwrite=overwrite)
            created = []
    finally:
        with _uninterrupted():
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for folder in reversed(created):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def write_artifact(
    model: ir.Model, staging: Path, name: str, sidecars: Sidecars, progress: ProgressCallback = no_progress
) -> dict[str, FileRecord]:
    """Write ``model`` as ``name`` with external data ``name.data``, and the sidecars, into ``staging``.

    Args:
        model: the graph.
        staging: folder from `artifact_folder`.
        name: file name of the graph.
        sidecars: what goes next to it.
        progress: called before each tensor.

    Returns:
        For the manifest: graphs and external data in ``staging``, by name.

    Raises:
        ProSparseError: there is not enough free space on the disk.
    """
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    free = shutil.disk_usage(staging).free
    if free < total + _ROOM:
        raise ProSparseError(
            f"output: {staging.parent}: disk full: expected {total + _ROOM:,} bytes free, got {free:,}",
            hint="free disk space, or choose another folder",
        )
    written = 0

    def report_tensor(tensor: ir.TensorProtocol, _: object) -> None:
        nonlocal written
        progress("write", written, total, tensor.name or "")
        written += tensor.nbytes

    ir.save(
        model,
        staging / name,
        external_data=f"{name}.data",
        callback=report_tensor,
        alignment=4096,  # a page: onnxruntime maps the file and the kernels read it in place
        align_threshold=65536,
    )
    records = {path.name: FileRecord(path.stat().st_size, sha256_file(path)) for path in staging.iterdir()}
    for file_name, document in sidecars.documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (staging / file_name).write_text(text, encoding="utf-8")
    if sidecars.write is not None:
        sidecars.write(staging)
    for platform, source in sidecars.libraries.items():
        copy = staging / library_in_artifact(platform)
        copy.parent.mkdir(parents=True)
        shutil.copyfile(source, copy)
    return records


def _check_alone(output: Path) -> None:
    """Fail for a folder with another artifact, whose manifest and tokenizer this one would replace."""
    graphs = [name for name in _recorded_files(output.parent / MANIFEST) if name.endswith(".onnx")]
    others = [name for name in graphs if (output.parent / name).is_file()]
    if others and output.name not in graphs:
        free = output.parent / output.stem / output.name
        raise ProSparseError(
            f"output: {output.parent}: expected a folder without another artifact, got one with {others[0]}",
            hint=f"each artifact needs its own folder, for example {free}",
        )


def _recorded_files(manifest: Path) -> list[str]:
    """Return the files that a manifest of any format lists; nothing if it is missing or not JSON."""
    return _recorded_names(manifest, "files")


def _recorded_libraries(manifest: Path) -> list[str]:
    """Return the paths of the libraries that a manifest lists; of our platforms only, whatever paths it states."""
    return [library_in_artifact(name) for name in _recorded_names(manifest, "libraries") if name in LIBRARY_FILES]


def _recorded_names(manifest: Path, key: str) -> list[str]:
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = values.get(key) if isinstance(values, dict) else None
    return list(found) if isinstance(found, dict) else []


def _make_parents(folder: Path) -> list[Path]:
    missing: list[Path] = []
    while not folder.exists():
        missing.insert(0, folder)
        folder = folder.parent
    if not folder.is_dir():
        raise ProSparseError(f"output: {folder}: expected a folder, got a file", hint="choose another folder")
    try:
        for path in missing:
            path.mkdir()
    except OSError as error:
        raise ProSparseError(
            f"output: {folder}: cannot create a folder in it: {error.strerror}", hint="choose a writable folder"
        ) from error
    return missing


def _publish(staging: Path, output: Path, *, overwrite: bool) -> None:
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    names.sort(key=lambda name: name == output.name)  # stable: the graph goes last (of two, the decoder)
    for name in names:
        target = output.parent / name
        if target.exists() and not overwrite and not _same(staging / name, target):
            raise ProSparseError(
                f"output: {target}: already exists, with different contents",
                hint="choose an empty folder or pass --overwrite",
            )
    _check_folders(names, output.parent)
    old = [name for name in _recorded_libraries(output.parent / MANIFEST) if name not in names] if overwrite else []
    replaced = staging / ".replaced"
    moved: list[str] = []
    placed: list[Path] = []
    made: list[Path] = []
    try:
        for name in (*reversed(names), *old):  # the old graph first: it must never be next to new weights
            if (output.parent / name).exists():
                (replaced / name).parent.mkdir(parents=True, exist_ok=True)
                moved.append(name)
                os.replace(output.parent / name, replaced / name)
        for name in names:
            made += _make_parents((output.parent / name).parent)
            placed.append(output.parent / name)
            os.replace(staging / name, output.parent / name)
        for name in old:
            with contextlib.suppress(OSError):  # not empty: it has a file that is not ours
                (output.parent / name).parent.rmdir()
                (output.parent / name).parent.parent.rmdir()
    except BaseException:
        with _uninterrupted():
            for path in placed:
                path.unlink(missing_ok=True)
            for folder in reversed(made):
                folder.rmdir()
            for name in sorted(moved, key=lambda name: name == output.name):
                if (replaced / name).exists():  # else the interruption came before it was moved
                    (output.parent / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(replaced / name, output.parent / name)
        raise


def _check_folders(names: Sequence[str], folder: Path) -> None:
    for parent in sorted({path for name in names for path in Path(name).parents}):
        if (folder / parent).exists() and not (folder / parent).is_dir():
            raise ProSparseError(
                f"output: {folder / parent}: expected a folder for the operator libraries, got a file",
                hint="rename the file, or choose another folder",
            )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM: cleaning up is short and must complete."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
