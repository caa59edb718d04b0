"""Read an ONNX file that somebody else wrote, without reading its weights, and refuse what cannot be right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from prosparse_export.errors import ProSparseError

__all__ = ["read_foreign_file"]

_IR_WITHOUT_CONSTANTS = 3  # up to here every initializer had to be listed as an input too
_AGAIN = "copy or export the file again"


def read_foreign_file(path: Path) -> ir.Model:
    """Return the model in ``path``; weights outside of the file stay there until they are used.

    Raises:
        ProSparseError: no file, no ONNX, external data missing or cut off, an unknown opset, or a graph that is
            cyclic or reads values that nothing makes.
    """
    if not path.is_file():
        raise ProSparseError(f"model: {path}: expected an .onnx file, got no such file", hint="check the path")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, NotImplementedError, AttributeError, OSError) as error:
        raise ProSparseError(
            f"model: {path}: expected an ONNX file, got {path.stat().st_size} bytes that are none: {_line(error)}",
            hint=_AGAIN,
        ) from error
    if not model.graph.outputs or not len(model.graph):
        raise ProSparseError(f"model: {path}: expected a graph with nodes and outputs, got an empty one", hint=_AGAIN)
    _check_opset(path, model)
    _check_external_data(path, model)
    _check_values(path, model)
    if model.ir_version is not None and model.ir_version <= _IR_WITHOUT_CONSTANTS:
        common.RemoveInitializersFromInputsPass()(model)
    return model


def _check_opset(path: Path, model: ir.Model) -> None:
    newest = onnx.defs.onnx_opset_version()
    opset = model.opset_imports.get("")
    if opset is None or not 1 <= opset <= newest:
        raise ProSparseError(
            f"model: {path}: opset {opset if opset is not None else 'of ai.onnx is not stated'}: "
            f"expected 1 to {newest}, the newest that onnx {onnx.__version__} knows",
            hint="upgrade onnx, or export with an older opset",
        )


def _check_external_data(path: Path, model: ir.Model) -> None:
    for graph in _graphs(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            file = Path(tensor.path)
            if not file.is_file():
                raise ProSparseError(
                    f"model: {path}: {value.name}: expected its weights in {file}, got no such file",
                    hint="copy the data file beside the .onnx file, under the name that it had",
                )
            end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
            if file.stat().st_size < end:
                raise ProSparseError(
                    f"model: {path}: {value.name}: expected {end} bytes in {file}, got {file.stat().st_size}",
                    hint="the copy was probably cut off: copy the data file again",
                )


def _check_values(path: Path, model: ir.Model) -> None:
    try:
        common.TopologicalSortPass()(model)
    except (ValueError, ir.passes.PassError) as error:
        raise ProSparseError(f"model: {path}: expected a graph without cycles, got one", hint=_AGAIN) from error
    for graph in _graphs(model.graph):
        inputs = set(graph.inputs)
        for node in graph:
            for value in node.inputs:
                if value is None or value.producer() is not None or value.is_initializer() or value in inputs:
                    continue
                if graph is model.graph or not value.is_graph_input():
                    raise ProSparseError(
                        f"model: {path}: node {node.name or node.outputs[0].name!r}: nothing makes its input "
                        f"{value.name!r}",
                        hint=_AGAIN,
                    )


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from _graphs(body)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
