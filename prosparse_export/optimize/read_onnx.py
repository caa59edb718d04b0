"""Read an ONNX file that somebody else wrote, without reading its weights, and refuse what cannot be right."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_external_data import check_weights
from prosparse_export.optimize.check_graph import AGAIN, check_graph

__all__ = ["read_foreign_file"]

_IR_WITHOUT_CONSTANTS = 3  # up to here every initializer had to be listed as an input too
_DOMAIN = "com.prosparse"
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


def read_foreign_file(path: Path) -> ir.Model:
    """Return the model in ``path``, its local functions inlined; weights outside of the file stay there until used.

    Raises:
        ProSparseError: no file, no ONNX, weights missing, cut off or outside of the folder, an unknown opset, or a
            graph that cannot run: cyclic, or with nodes or outputs that lack what they are made of.
    """
    if not path.is_file():
        raise ProSparseError(f"model: {path}: expected an .onnx file, got no such file", hint="check the path")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnx_ir warns of what is an error here, with a line of its own
    try:
        model = ir.load(path)
    except _UNREADABLE as error:
        raise ProSparseError(
            f"model: {path}: expected an ONNX file, got {path.stat().st_size} bytes that are none: {_line(error)}",
            hint=AGAIN,
        ) from error
    finally:
        logging.disable(disabled)
    if not model.graph.outputs or not len(model.graph):
        raise ProSparseError(f"model: {path}: expected a graph with nodes and outputs, got an empty one", hint=AGAIN)
    _check_opset(path, model)
    check_weights(path, model)
    check_graph(path, model)
    _inline(path, model)
    if model.ir_version is not None and model.ir_version <= _IR_WITHOUT_CONSTANTS:
        common.RemoveInitializersFromInputsPass()(model)
    return model


def _check_opset(path: Path, model: ir.Model) -> None:
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:  # the same domain by its other name
            imports.setdefault("", imports.pop("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("")
    if opset is None or opset < 1:
        got = f"opset {opset}" if opset is not None else "opset of ai.onnx is not stated"
        raise ProSparseError(
            f"model: {path}: {got}: expected 1 to {newest}",
            hint="export the file again: without its opset nobody can tell what its operators mean",
        )
    if opset > newest:
        raise ProSparseError(
            f"model: {path}: opset {opset}: expected 1 to {newest}, the newest that onnx {onnx.__version__} knows",
            hint="upgrade onnx, or export with an older opset",
        )


def _inline(path: Path, model: ir.Model) -> None:
    """Inline local functions here, where an error can name the file; the operators' own stay."""
    try:
        common.InlinePass(lambda function: function.domain != _DOMAIN)(model)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        raise ProSparseError(
            f"model: {path}: expected local functions that can be inlined, got: {_line(error)}", hint=AGAIN
        ) from error


def _line(error: BaseException) -> str:
    """Return the first cause of ``error`` in one line: those above it only say where they passed it on."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:200] or type(error).__name__
