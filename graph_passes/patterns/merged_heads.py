"""Merge attention heads into the layout that projections produce and onnxruntime's operators take."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.standard_nodes import producer

__all__ = ["attention_output", "merged_heads", "split_heads_source"]


def merged_heads(new: tape.Tape, value: ir.Value) -> ir.Value:
    """Return ``value``, ``[batch, heads, sequence, head_dim]``, as ``[batch, sequence, heads * head_dim]``.

    If ``value`` is Reshape and Transpose of such a tensor, returns that tensor. Otherwise adds nodes to ``new``.
    """
    source = split_heads_source(value)
    if source is not None:
        return source
    flat = new.op("Transpose", [value], {"perm": [0, 2, 1, 3]})
    return new.op("Reshape", [flat, new.op("Constant", [], {"value_ints": [0, 0, -1]})])


def split_heads_source(value: ir.Value) -> ir.Value | None:
    """Return ``[batch, sequence, heads * head_dim]`` if ``value`` is Reshape and Transpose of it, or None."""
    transpose = producer(value, "Transpose")
    split = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or list(transpose.attributes.get_ints("perm", [])) != [0, 2, 1, 3] or split is None:
        return None
    source = split.inputs[0]
    return source if source is not None and (source.shape is None or source.shape.rank() == 3) else None


def attention_output(value: ir.Value) -> ir.Value | None:
    """Follow ``Where(nothing attended, 0, .)``, Transpose and Reshape to ``[batch, sequence, heads * head_dim]``."""
    for wanted in ("Where", "same shape", "Transpose", "Reshape"):
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        node = uses[0].node
        if wanted == "Where" and node.op_type == "Where" and uses[0].idx == 2:
            value = node.outputs[0]  # only padding attends to nothing, and nothing attends to padding
        elif wanted == "same shape":
            if node.op_type == "Reshape" and _keeps_heads(value, node.outputs[0]):
                value = node.outputs[0]
        elif wanted == "Transpose" and node.op_type == "Transpose":
            if list(node.attributes.get_ints("perm", [])) != [0, 2, 1, 3]:
                return None
            value = node.outputs[0]
        elif wanted == "Reshape" and node.op_type == "Reshape":
            value = node.outputs[0]
        elif wanted != "Where":
            return None
    return value


def _keeps_heads(old: ir.Value, new: ir.Value) -> bool:
    """Return whether a Reshape keeps ``[batch, heads, sequence, head_dim]``."""
    return old.shape is not None and new.shape is not None and list(old.shape)[1:] == list(new.shape)[1:]
