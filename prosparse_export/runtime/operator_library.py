"""The operator library: where it is, what it can, and how a session gets it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import onnxruntime

from prosparse_export.artifact.manifest import Manifest
from prosparse_export.errors import ProSparseError

__all__ = [
    "FOLDED_BYTES",
    "LibraryInfo",
    "check_library",
    "disabled_optimizers",
    "library_info",
    "library_path",
    "register",
]

FOLDED_BYTES = 512 << 20  # see disabled_optimizers

_MARK = "prosparse.registered"  # a session configuration entry: it lives and dies with the object
_NAMES = ("libprosparse_ops.so", "libprosparse_ops.dylib")
_ISA_HINT = "unset PROSPARSE_ISA, or name a variant that `prosparse info` lists for this machine"


@dataclass(frozen=True)
class LibraryInfo:
    """What the operator library says of itself.

    Attributes:
        path: the shared library.
        version: the version that it was built as.
        isa_compiled: variants in it, best first.
        isa_supported: those that this machine runs.
        isa_used: the one that will run, or None where PROSPARSE_ISA names one that cannot.
        error: why ``isa_used`` is None.
    """

    path: Path
    version: str
    isa_compiled: tuple[str, ...]
    isa_supported: tuple[str, ...]
    isa_used: str | None
    error: str | None


def library_path() -> Path:
    """Return the path of the operator library, for any onnxruntime binding in any language.

    ``PROSPARSE_OPS_LIBRARY`` overrides it, for instance with a build of one's own.

    Raises:
        ProSparseError: there is none.
    """
    override = os.environ.get("PROSPARSE_OPS_LIBRARY")
    if override:
        if not Path(override).is_file():
            raise ProSparseError(
                f"PROSPARSE_OPS_LIBRARY: {override}: expected a shared library, got no such file",
                hint="unset it to use the installed library",
            )
        return Path(override)
    folders = [Path(__file__).parent.parent / "_ops"]
    with contextlib.suppress(PackageNotFoundError):  # a source tree on sys.path hides the installed package
        folders.append(Path(str(distribution("prosparse-export").locate_file("prosparse_export/_ops"))))
    for folder in folders:
        for name in _NAMES:
            if (folder / name).is_file():
                return folder / name
    raise ProSparseError(
        f"operator library: {folders[-1]}: expected {_NAMES[0]}, got none",
        hint="run `pip install .` in the project's folder: it builds the library",
    )


def library_info() -> LibraryInfo:
    """Ask the operator library which variants it has and which one would run."""
    path = library_path()
    try:
        function = ctypes.CDLL(str(path)).prosparse_ops_info
    except (OSError, AttributeError) as error:
        raise ProSparseError(
            f"operator library: {path}: cannot be loaded: {error}",
            hint="it is of another system or version: run `pip install .` in the project's folder to build it anew",
        ) from error
    function.restype = ctypes.c_char_p
    values = json.loads(function().decode())
    return LibraryInfo(
        path=path,
        version=values["version"],
        isa_compiled=tuple(values["isa_compiled"]),
        isa_supported=tuple(values["isa_supported"]),
        isa_used=values["isa_used"],
        error=values["error"],
    )


def check_library() -> None:
    """See that the operator library is there and will run: for jobs that need it minutes later only.

    Raises:
        ProSparseError: there is none, it cannot be loaded, or PROSPARSE_ISA names a variant that cannot run here.
    """
    library = library_info()
    if library.isa_used is None:
        raise ProSparseError(f"operator library: {library.path}: {library.error}", hint=_ISA_HINT)


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Make the operators of domain ``com.prosparse`` known to sessions made with these options.

    Calling it again with the same object does nothing (onnxruntime itself would fail).

    Raises:
        ProSparseError: there is no library, or it refuses (onnxruntime too old, PROSPARSE_ISA wrong).
    """
    try:
        session_options.get_session_config_entry(_MARK)
        return
    except RuntimeError:  # onnxruntime's way to say that there is no such entry
        pass
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ProSparseError(
            f"operator library: {path}: {' '.join(str(error).split())}",
            hint=_ISA_HINT if "PROSPARSE_ISA" in str(error) else "`prosparse info` shows the library and the versions",
        ) from error
    session_options.add_session_config_entry(_MARK, "1")


def disabled_optimizers(path: Path, manifest: Manifest | None, *, library: bool) -> list[str]:
    """Return onnxruntime's ``disabled_optimizers`` for the model at ``path``, whose prosparse.json is ``manifest``.

    Without the library onnxruntime would compute the float32 values of all narrower weights in advance and keep
    them: 4 bytes for each, 27 GB of a 7B model, whatever it has on disk. Up to 512 MB on disk it may.
    """
    linears = None if manifest is None else manifest.linears
    formats = (manifest and manifest.weight_format, linears and linears.weight_format)
    data = path.with_name(f"{path.name}.data")
    if library or set(formats) == {"f32"} or not data.is_file() or data.stat().st_size <= FOLDED_BYTES:
        return []
    return ["ConstantFolding"]
