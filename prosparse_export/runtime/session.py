"""Open an artifact's graph in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from prosparse_export.artifact.integrity import check_files, check_model_path
from prosparse_export.artifact.manifest import Manifest, read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import check_operators, disabled_optimizers, register
from prosparse_export.runtime.threads import default_threads

__all__ = ["open_session", "run_bound"]

_CACHE_VERSION = (1, 27)


def open_session(
    path: Path,
    *,
    threads: int | None = None,
    spinning: bool = True,
    library: bool = True,
    verify: bool = False,
    session_options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Check the artifact's files and return a session; for the arguments see `SparseModel.open`.

    Raises:
        ProSparseError: a file is missing or damaged, the library lacks an operator, or onnxruntime cannot open it.
    """
    check_model_path(path)
    check_files(path, verify=verify)
    manifest = read_manifest(path)
    _check_version(path, manifest)
    options = session_options or onnxruntime.SessionOptions()
    if session_options is None:
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        threads = threads or default_threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    if library:
        register(options)
        check_operators(path, manifest)
    disabled = disabled_optimizers(path, manifest, library=library)
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise _cannot_open(path, error) from error


def run_bound(session: onnxruntime.InferenceSession, io: onnxruntime.IOBinding, path: Path) -> None:
    """Run a session on bound inputs and outputs.

    Raises:
        ProSparseError: onnxruntime fails.
    """
    try:
        session.run_with_iobinding(io)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ProSparseError(
            f"model: {path}: {' '.join(str(error).split())}",
            hint="check the token ids, free memory, and the files: `prosparse info ONNX_FILE --verify`",
        ) from error


def _check_version(path: Path, manifest: Manifest | None) -> None:
    """Raise for an 8-bit KV cache and an onnxruntime that would only say that a type is not supported."""
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if (
        manifest is not None
        and manifest.kv_cache is not None
        and manifest.kv_cache.format == "i8"
        and found < _CACHE_VERSION
    ):
        raise ProSparseError(
            f"model: {path}: expected onnxruntime >= 1.27 for its 8-bit KV cache, got {onnxruntime.__version__}",
            hint="upgrade onnxruntime, or export with --kv-cache f32",
        )


def _cannot_open(path: Path, error: Exception) -> ProSparseError:
    data = path.with_name(f"{path.name}.data")
    hint = "prosparse.json next to it has the required onnxruntime version; if the file is damaged, export it again"
    if data.name in str(error) and not data.is_file():
        hint = f"its weights, {data.name}, are missing: copy the artifact's whole folder"
    return ProSparseError(
        f"model: {path}: onnxruntime {onnxruntime.__version__} cannot open it: {' '.join(str(error).split())}",
        hint=hint,
    )
