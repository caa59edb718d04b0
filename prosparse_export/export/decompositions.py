"""Spare torch.onnx its second trace, where the first one has nothing left to decompose.

Before the translation to ONNX, torch.onnx traces the exported program again to decompose what onnxscript does not
translate. Decoders need that for casts and the like only, which a walk over the graph replaces in milliseconds; the
second trace takes 40 % of an export's tracing. tests/integration/test_stamped_families.py compares both ways.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Any
from unittest import mock

import torch
from torch.fx import Graph, Node
from torch.onnx._internal.exporter import _core, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

__all__ = ["decomposed_in_place"]

_ATEN = torch.ops.aten
_CASTS = frozenset({_ATEN.to.dtype, _ATEN.to.device, _ATEN.to.dtype_layout, _ATEN.to.other})
_ALIASES = {
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
    _ATEN.__and__.Scalar: _ATEN.bitwise_and.Scalar,
    _ATEN.__or__.Scalar: _ATEN.bitwise_or.Scalar,
}


@contextlib.contextmanager
def decomposed_in_place() -> Iterator[None]:
    """Let torch.onnx decompose programs without another trace, within the context, where that gives the same."""
    before = _core._prepare_exported_program_for_export

    def prepare(
        exported_program: torch.export.ExportedProgram, *, registry: ONNXRegistry
    ) -> torch.export.ExportedProgram:
        translated = {entry[0].fx_target for entry in registry.functions.values()}
        if not all(_known(node, translated) for node in exported_program.graph.nodes):
            return before(exported_program, registry=registry)
        for node in exported_program.graph.nodes:
            node.target = _ALIASES.get(node.target, node.target)
        with mock.patch.object(_fx_passes, "decompose_with_registry", lambda program, registry: program):
            program = before(exported_program, registry=registry)
        with program.graph_module._set_replace_hook(program.graph_signature.get_replace_hook()):
            _replace(program.graph)  # the signature names outputs by their nodes
        program.graph_module.recompile()
        return program

    with mock.patch.object(_core, "_prepare_exported_program_for_export", prepare):
        yield


def _known(node: Node, translated: Container[Any]) -> bool:
    """Return whether ``node`` can be translated to ONNX as it is, or be replaced."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    target = node.target
    if target in _CASTS or target is _ATEN.contiguous.default:
        source = node.args[0]
        return isinstance(source, Node) and source.meta["val"].device == node.meta["val"].device
    if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
        return False
    return target in _ALIASES or target in translated


def _replace(graph: Graph) -> None:
    """Replace operators by what the second trace gives; nothing after it runs the graph, so strides do not matter."""
    for node in list(graph.nodes):
        cast, reshape = node.target in _CASTS, node.target is _ATEN.reshape.default
        if node.target is _ATEN.contiguous.default or ((cast or reshape) and _changes_nothing(node)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif cast:
            dtype = node.meta["val"].dtype
            node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {"dtype": dtype}
        elif reshape:
            node.target = _ATEN.view.default  # a Reshape that takes 0 for a size
    graph.eliminate_dead_code()


def _changes_nothing(node: Node) -> bool:
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return before.dtype == after.dtype and [*map(str, before.shape)] == [*map(str, after.shape)]
