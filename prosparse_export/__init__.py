"""ONNX export and deployment of activation-sparse transformers.

    import prosparse_export

    model = prosparse_export.load("out/demo/demo.onnx")
    print(model.generate("The city of Paris is", max_new_tokens=32))

Names are imported when they are first used: ``import prosparse_export`` brings in neither torch nor
onnxruntime.
"""

from __future__ import annotations

import contextlib
import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prosparse_export.errors import ProSparseError
    from prosparse_export.export import ExportOptions, export_model
    from prosparse_export.optimize import OptimizeOptions, optimize_file
    from prosparse_export.runtime.model import load
    from prosparse_export.runtime.operator_library import library_path, register
    from prosparse_export.runtime.sampling import Sampling
    from prosparse_export.validation import validate

__all__ = [
    "ExportOptions",
    "OptimizeOptions",
    "ProSparseError",
    "Sampling",
    "export_model",
    "library_path",
    "load",
    "optimize_file",
    "register",
    "validate",
]

_HOME = {
    "ExportOptions": "export",
    "ProSparseError": "errors",
    "export_model": "export",
    "OptimizeOptions": "optimize",
    "library_path": "runtime.operator_library",
    "load": "runtime.model",
    "optimize_file": "optimize",
    "Sampling": "runtime.sampling",
    "register": "runtime.operator_library",
    "validate": "validation",
}

__version__ = "0.0.0"  # a source tree that was not installed
for _distribution in ("prosparse-export", "prosparse-runtime"):
    with contextlib.suppress(PackageNotFoundError):
        __version__ = version(_distribution)
        break


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
