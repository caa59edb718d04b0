"""Find the operator library, query it, and register it with a session."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import onnxruntime

from prosparse_export.artifact.libraries import check_whole
from prosparse_export.artifact.manifest import Manifest, read_manifest
from prosparse_export.artifact.platforms import library_file, this_platform
from prosparse_export.errors import ProSparseError

__all__ = [
    "FOLDED_BYTES",
    "ISA_HINT",
    "LibraryInfo",
    "check_library",
    "check_operators",
    "disabled_optimizers",
    "library_folders",
    "library_info",
    "library_path",
    "register",
    "usable_library",
]

FOLDED_BYTES = 512 << 20  # see disabled_optimizers

_MARK = "prosparse.registered"  # session configuration entry: marks the options object itself
ISA_HINT = "unset PROSPARSE_ISA, or name a variant that `prosparse info` lists for this machine"


@dataclass(frozen=True)
class LibraryInfo:
    """Properties of the operator library.

    Attributes:
        path: the shared library.
        version: its version.
        operators: the operators that it implements.
        isa_compiled: compiled variants, best first.
        isa_supported: the variants that this machine can run.
        isa_used: the variant that will run; None if PROSPARSE_ISA names one that cannot.
        error: why ``isa_used`` is None.
    """

    path: Path
    version: str
    operators: tuple[str, ...]
    isa_compiled: tuple[str, ...]
    isa_supported: tuple[str, ...]
    isa_used: str | None
    error: str | None


def library_path() -> Path:
    """Return the path of the operator library, for any onnxruntime language binding.

    The environment variable ``PROSPARSE_OPS_LIBRARY`` overrides it.

    Raises:
        ProSparseError: it is not installed.
    """
    override = os.environ.get("PROSPARSE_OPS_LIBRARY")
    if override:
        if not Path(override).is_file():
            raise ProSparseError(
                f"PROSPARSE_OPS_LIBRARY: {override}: no such file",
                hint="unset it to use the installed library",
            )
        return Path(override)
    folders = library_folders()
    name = f"{this_platform()}/{library_file(this_platform())}"
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ProSparseError(
        f"operator library: {folders[-1]}: no {name}",
        hint="reinstall prosparse-export (in a checkout: `pip install .`), or set PROSPARSE_OPS_LIBRARY to a copy that "
        "you trust, such as the artifact's lib/PLATFORM/",
    )


def library_folders() -> list[Path]:
    """Return the folders that may contain installed libraries as PLATFORM/FILE, the preferred one first."""
    folders = [Path(__file__).parent.parent / "_ops"]
    with contextlib.suppress(PackageNotFoundError):  # a source tree on sys.path hides the installed package
        folders.append(Path(str(distribution("prosparse-export").locate_file("prosparse_export/_ops"))))
    return folders


def library_info() -> LibraryInfo:
    """Return the operator library's version, its variants, and the one that would run.

    Raises:
        ProSparseError: the library is missing or cannot be loaded.
    """
    path = library_path()
    check_whole(path)
    try:
        function = ctypes.CDLL(str(path)).prosparse_ops_info
    except (OSError, AttributeError) as error:
        raise ProSparseError(
            f"operator library: {path}: cannot be loaded: {error}",
            hint="it is damaged, or for another system or processor: reinstall prosparse-export; `prosparse generate "
            "--no-library` runs without it",
        ) from error
    function.restype = ctypes.c_char_p
    values = json.loads(function().decode())
    return LibraryInfo(
        path=path,
        version=values["version"],
        operators=tuple(values.get("operators", ())),
        isa_compiled=tuple(values["isa_compiled"]),
        isa_supported=tuple(values["isa_supported"]),
        isa_used=values["isa_used"],
        error=values["error"],
    )


def check_library() -> None:
    """Fail early if the operator library cannot run, before a long job that needs it at the end.

    Raises:
        ProSparseError: it is missing, it cannot be loaded, or PROSPARSE_ISA names a variant that cannot run here.
    """
    library = library_info()
    if library.isa_used is None:
        raise ProSparseError(f"operator library: {library.path}: {library.error}", hint=ISA_HINT)


def check_operators(path: Path, manifest: Manifest | None) -> None:
    """Check that the library implements the operators of the artifact ``path``.

    onnxruntime would run the function bodies of the others, densely and without a word.

    Raises:
        ProSparseError: it lacks some; names them.
    """
    if manifest is None or not manifest.operators:
        return
    library = library_info()
    missing = sorted(set(manifest.operators) - set(library.operators))
    if missing:
        raise ProSparseError(
            f"operator library: {library.path}: expected the operators of {path}, got version {library.version} "
            f"without {', '.join(missing)}",
            hint=f"install prosparse-export {manifest.versions.get('prosparse-export', '')} or newer (in a checkout: "
            "`pip install .`); `prosparse generate --no-library` runs the function bodies, densely",
        )


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Register the ``com.prosparse`` operators with sessions created from these options.

    A second call for the same object has no effect (in onnxruntime it would fail).

    Raises:
        ProSparseError: the library is missing or cannot run (onnxruntime too old, PROSPARSE_ISA wrong).
    """
    try:
        session_options.get_session_config_entry(_MARK)
        return
    except RuntimeError:  # no such entry
        pass
    path = library_path()
    check_whole(path)
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ProSparseError(
            f"operator library: {path}: {' '.join(str(error).split())}",
            hint=ISA_HINT if "PROSPARSE_ISA" in str(error) else "`prosparse info` shows the library and the versions",
        ) from error
    session_options.add_session_config_entry(_MARK, "1")


def usable_library(path: Path, *, required: bool) -> str | None:
    """Check the operator library for the artifact ``path``; return None if it can run, else why not.

    So a caller can run densely.

    Raises:
        ProSparseError: it cannot run, and ``required``, PROSPARSE_OPS_LIBRARY or PROSPARSE_ISA asks for it: a forced
            choice is never replaced by another.
    """
    try:
        check_library()
        check_operators(path, read_manifest(path))
    except ProSparseError as error:
        if required or os.environ.get("PROSPARSE_OPS_LIBRARY") or os.environ.get("PROSPARSE_ISA"):
            raise
        return str(error)
    return None


def disabled_optimizers(path: Path, manifest: Manifest | None, *, library: bool) -> list[str]:
    """Return onnxruntime's ``disabled_optimizers`` for the model at ``path`` with the given manifest.

    Without the library, constant folding would convert all narrow weights to float32 when the session is created: 27 GB
    for a 7B model in any format. It is disabled for more than 512 MB of weights on disk.
    """
    linears = None if manifest is None else manifest.linears
    formats = {manifest and manifest.weight_format, linears and linears.weight_format}
    formats |= set(linears.exceptions.values()) if linears is not None else set()
    data = path.with_name(f"{path.name}.data")
    if library or formats == {"f32"} or not data.is_file() or data.stat().st_size <= FOLDED_BYTES:
        return []
    return ["ConstantFolding"]
