"""Read a third-party ONNX file, without its weights, and reject files that are damaged or cannot run."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from graph_passes.custom_ops import DOMAIN
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_external_data import check_weights
from prosparse_export.optimize.check_graph import AGAIN, check_graph
from prosparse_export.quiet import quiet

__all__ = ["read_onnx_file"]

_IR_WITHOUT_CONSTANTS = 3  # up to this IR version every initializer had to be listed as an input
_UNREADABLE = (
    DecodeError,
    ir.serde.SerdeError,
    ValueError,
    TypeError,
    KeyError,
    NotImplementedError,
    AttributeError,
    OSError,
)


def read_onnx_file(path: Path) -> ir.Model:
    """Return the model in ``path`` with its local functions inlined; external weights are not read.

    Raises:
        ProSparseError: there is no such file, it is not ONNX, weights are missing, truncated or outside the folder,
            the opset is unknown, or the graph cannot run: it has cycles, or values that no node produces.
    """
    if not path.is_file():
        raise ProSparseError(f"model: {path}: no such file", hint="check the path")
    try:
        with quiet():  # what onnx_ir warns about is an error below
            model = ir.load(path)
    except _UNREADABLE as error:
        raise ProSparseError(
            f"model: {path}: not a valid ONNX file ({path.stat().st_size} bytes): {_line(error)}",
            hint=AGAIN,
        ) from error
    if not model.graph.outputs or not len(model.graph):
        raise ProSparseError(f"model: {path}: expected a graph with nodes and outputs, got an empty graph", hint=AGAIN)
    _check_opset(path, model)
    check_weights(path, model)
    check_graph(path, model)
    _inline(path, model)
    if model.ir_version is not None and model.ir_version <= _IR_WITHOUT_CONSTANTS:
        common.RemoveInitializersFromInputsPass()(model)
    return model


def _check_opset(path: Path, model: ir.Model) -> None:
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:  # another name of the same domain
            imports.setdefault("", imports.pop("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("")
    if opset is None or opset < 1:
        got = f"got {opset}" if opset is not None else "but the file declares no opset"
        raise ProSparseError(
            f"model: {path}: opset: expected 1 to {newest}, {got}",
            hint="export the file again: operators have no meaning without an opset",
        )
    if opset > newest:
        raise ProSparseError(
            f"model: {path}: opset: expected 1 to {newest}, the newest in onnx {onnx.__version__}, got {opset}",
            hint="upgrade onnx, or export with an older opset",
        )


def _inline(path: Path, model: ir.Model) -> None:
    """Inline local functions, except the bodies of com.prosparse operators."""
    try:
        common.InlinePass(lambda function: function.domain != DOMAIN)(model)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        raise ProSparseError(f"model: {path}: local functions cannot be inlined: {_line(error)}", hint=AGAIN) from error


def _line(error: BaseException) -> str:
    """Return the root cause of ``error`` in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:200] or type(error).__name__
