"""Fourth stage: write the graph and what belongs to it, all or nothing."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = [
    "Sidecars",
    "artifact_folder",
    "read_manifest",
    "sha256_file",
    "write_artifact",
    "write_manifest",
]

MANIFEST = "prosparse.json"
_ROOM = 1 << 20  # bytes for everything but the weights


@dataclass(frozen=True)
class Sidecars:
    """What lies beside the graph.

    Attributes:
        documents: JSON files by name; the manifest gets sizes and hashes of graph and weights.
        files: files to copy, by the name that they get.
        write: called with a folder, writes more files into it (the tokenizer's).
    """

    documents: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    write: Callable[[Path], object] | None = None


@contextmanager
def artifact_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside ``output`` whose files replace those of ``output``'s folder at the end.

    If the body raises, or is interrupted, nothing remains. ``output`` itself is moved last, so it never
    exists without what it needs.

    Raises:
        ProSparseError: a file is in the way, the folder holds another artifact or is not writable, or the disk is full.
    """
    if output.suffix != ".onnx":
        raise ProSparseError(
            f"output: {output}: expected a name that ends in .onnx", hint=f"for instance {output}.onnx"
        )
    if output.is_dir():
        raise ProSparseError(
            f"output: {output}: expected a file name, got a folder", hint=f"for instance {output}/m.onnx"
        )
    if output.exists() and not overwrite:
        raise ProSparseError(f"output: {output}: exists already", hint="choose another name or pass --overwrite")
    _check_alone(output)
    created = _make_parents(output.parent)
    staging = None
    try:
        with _disk_errors(output):
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
) -> None:
    """Write ``model`` as ``name`` with external data ``name.data``, and the sidecars, into ``staging``.

    Args:
        model: the graph.
        staging: folder from `artifact_folder`.
        name: file name of the graph.
        sidecars: what goes beside it.
        progress: called before each tensor.

    Raises:
        ProSparseError: there is not enough room on the disk.
    """
    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    free = shutil.disk_usage(staging).free
    if free < total + _ROOM:
        raise ProSparseError(
            f"output: {staging.parent}: disk full: expected {total + _ROOM:,} bytes free, got {free:,}",
            hint="free some space or choose another folder",
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
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in staging.iterdir()}
    for file_name, document in sidecars.documents.items():
        if file_name == MANIFEST:
            document["files"] = files
        _write_json(staging / file_name, document)
    if sidecars.write is not None:
        sidecars.write(staging)
    for file_name, source in sidecars.files.items():
        shutil.copyfile(source, staging / file_name)


def write_manifest(staging: Path, manifest: Mapping[str, Any]) -> None:
    """Write prosparse.json into ``staging`` again, with more in it."""
    _write_json(staging / MANIFEST, manifest)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return prosparse.json beside the graph ``path``, or {} if there is none.

    Raises:
        ProSparseError: it is not JSON.
    """
    file = path.parent / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProSparseError(f"manifest: {file}: expected JSON, got {error}", hint="export the model again") from error
    return manifest


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_alone(output: Path) -> None:
    """Refuse a folder with another artifact, before any work: its manifest and tokenizer would become this one's."""
    try:
        files = read_manifest(output).get("files")
    except ProSparseError:
        return  # damaged: no artifact can rely on it
    graphs = [name for name in (files if isinstance(files, dict) else {}) if name.endswith(".onnx")]
    others = [name for name in graphs if (output.parent / name).is_file()]
    if others and output.name not in graphs:
        free = output.parent / output.stem / output.name
        raise ProSparseError(
            f"output: {output.parent}: expected a folder of its own, got that of {others[0]}",
            hint=f"an artifact is all of its folder: choose another, for instance {free}",
        )


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
            f"output: {folder}: cannot make a folder in it: {error.strerror}",
            hint="choose a folder that you may write to",
        ) from error
    return missing


def _publish(staging: Path, output: Path, *, overwrite: bool) -> None:
    names = sorted(path.name for path in staging.iterdir())
    names.sort(key=lambda name: name == output.name)  # stable: the graph goes last (of two, the decoder)
    for name in names:
        target = output.parent / name
        if target.exists() and not overwrite and not _same(staging / name, target):
            raise ProSparseError(
                f"output: {target}: exists already, with other contents",
                hint="choose an empty folder or pass --overwrite",
            )
    replaced = staging / ".replaced"
    replaced.mkdir()
    placed: list[Path] = []
    try:
        for name in reversed(names):  # the old graph first: never beside new weights, not even for a moment
            if (output.parent / name).exists():
                os.replace(output.parent / name, replaced / name)
        for name in names:
            placed.append(output.parent / name)
            os.replace(staging / name, output.parent / name)
    except BaseException:
        with _uninterrupted():
            for path in placed:
                path.unlink(missing_ok=True)
            for path in sorted(replaced.iterdir(), key=lambda path: path.name == output.name):
                os.replace(path, output.parent / path.name)
        raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold off Ctrl-C and the like: what tidies up is short and has to end."""
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


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota exceeded"}.get(
            error.errno or 0, error.strerror or str(error)
        )
        if error.errno is None and " requested and " in what:  # numpy.tofile says how much it wrote, and not why
            what = f"disk full ({what})"
        raise ProSparseError(
            f"output: {output.parent}: cannot write: {what}",
            hint="choose a folder that you may write to and that has room for the weights",
        ) from error
