"""Check that the graph of a third-party ONNX file can run: no cycles, and a producer for every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from prosparse_export.errors import ProSparseError

__all__ = ["AGAIN", "check_graph", "graphs_of"]

AGAIN = "copy or export the file again"


def check_graph(path: Path, model: ir.Model) -> None:
    """Check ``model``, which came from ``path``.

    Raises:
        ProSparseError: it has cycles, a node lacks an input or output, or a value has no producer.
    """
    for function in model.functions.values():
        _check_nodes(path, function, function.opset_imports or model.opset_imports)
    for graph in _graphs(model.graph):
        _check_nodes(path, graph, model.opset_imports)
    try:
        common.TopologicalSortPass()(model)
    except (ValueError, ir.passes.PassError) as error:
        raise ProSparseError(f"model: {path}: the graph has a cycle", hint=AGAIN) from error
    for graph in _graphs(model.graph):
        for node in graph:
            for value in node.inputs:
                if value is not None and not _is_produced(value, graph, model.graph):
                    raise ProSparseError(
                        f"model: {path}: node {_name(node)}: no node produces its input {value.name!r}", hint=AGAIN
                    )
        for value in graph.outputs:
            if not _is_produced(value, graph, model.graph):
                raise ProSparseError(f"model: {path}: no node produces the graph output {value.name!r}", hint=AGAIN)


def graphs_of(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the graph, the local functions, and the bodies of If, Loop and Scan in either."""
    yield from _graphs(model.graph)
    for function in model.functions.values():
        yield from _graphs(function)


def _graphs(graph: ir.Graph | ir.Function) -> Iterator[ir.Graph | ir.Function]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from _graphs(body)


def _is_produced(value: ir.Value, graph: ir.Graph | ir.Function, outermost: ir.Graph) -> bool:
    if value.producer() is not None or value.is_initializer() or value in graph.inputs:
        return True
    return graph is not outermost and value.is_graph_input()  # an outer graph's


def _check_nodes(path: Path, graph: ir.Graph | ir.Function, imports: Mapping[str, int]) -> None:
    """Check the numbers of inputs and outputs of standard operators against their schemas."""
    for node in graph:
        opset = imports.get("")
        if node.domain != "" or opset is None or not onnx.defs.has(node.op_type, opset, ""):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        if not schema.min_input <= len(node.inputs) <= schema.max_input or len(node.outputs) < schema.min_output:
            most = f" to {schema.max_input}" if schema.max_input != schema.min_input else ""
            raise ProSparseError(
                f"model: {path}: node {_name(node)}: {node.op_type}: expected {schema.min_input}{most} inputs and at "
                f"least {schema.min_output} outputs, got {len(node.inputs)} and {len(node.outputs)}",
                hint=AGAIN,
            )
        for value, formal in zip(node.inputs, schema.inputs, strict=False):
            if value is None and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                raise ProSparseError(
                    f"model: {path}: node {_name(node)}: {node.op_type}: required input {formal.name} is missing",
                    hint=AGAIN,
                )


def _name(node: ir.Node) -> str:
    return repr(node.name or (node.outputs[0].name if node.outputs else "") or node.op_type)
