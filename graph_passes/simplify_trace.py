"""Simplify a graph as torch.onnx translates it, so that the patterns of the other passes apply."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import rewriter
from onnxscript.optimizer import _constant_folding

from graph_passes.patterns.layer_copies import SCOPES

__all__ = ["merge_equal", "simplify_trace"]

_SLICE = re.compile(r"\.slice\([^)]*\)")  # of models that loop over layers[:n]: layers.slice(None, n, None).0
_ROUNDS = 2  # what the rules expose, constant folding takes in the next round
_LARGEST_INPUT, _LARGEST_OUTPUT = 8192, 512 * 512  # elements; onnxscript's own limits


def simplify_trace(model: ir.Model, keep: Callable[[ir.Node], bool] = lambda node: False) -> None:
    """Fold constants and apply onnxscript's rewrite rules, in place; layers share nothing but constants afterwards.

    Args:
        model: as torch.onnx translates it.
        keep: nodes with constant inputs that must not be folded.
    """
    fold = _constant_folding.FoldConstantsPass(
        shape_inference=True,
        input_size_limit=_LARGEST_INPUT,
        output_size_limit=_LARGEST_OUTPUT,
        should_fold=lambda node: False if node.op_type == "Resize" or keep(node) else None,
    )
    rules = rewriter.RewritePass(rewriter._DEFAULT_REWRITE_RULES)
    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager([fold, rules, common.RemoveUnusedNodesPass()], steps=_ROUNDS, early_stop=True),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
    )(model)
    _read_sizes_from_first_input(model.graph)
    for node in model.graph:
        if SCOPES in node.metadata_props:
            node.metadata_props[SCOPES] = _SLICE.sub("", node.metadata_props[SCOPES])


def merge_equal(model: ir.Model) -> None:
    """Merge equal constants and equal nodes, in place, and give every value and node a unique name."""
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _read_sizes_from_first_input(graph: ir.Graph) -> None:
    """Read each dynamic size from the first input that has it; the exporter's choice varies with their number."""
    first: dict[str, tuple[ir.Value, int]] = {}
    for source in graph.inputs:
        for axis, dim in enumerate(source.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                first.setdefault(dim.value, (source, axis))
    for node in graph:
        value = node.inputs[0] if node.op_type == "Shape" else None
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
        if value is None or value.shape is None or not value.is_graph_input() or start is None or end != start + 1:
            continue
        dim = value.shape[start]
        if isinstance(dim, ir.SymbolicDim) and dim.value in first:
            other, axis = first[dim.value]
            node.replace_input_with(0, other)
            for name, position in (("start", axis), ("end", axis + 1)):
                node.attributes[name] = ir.AttrInt64(name, position)
