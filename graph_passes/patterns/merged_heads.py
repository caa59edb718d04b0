"""Merge attention heads into the layout that projections produce and onnxruntime's operators take."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.standard_nodes import producer

__all__ = ["merged_heads"]


def merged_heads(new: tape.Tape, value: ir.Value) -> ir.Value:
    """Return ``value``, ``[batch, heads, sequence, head_dim]``, as ``[batch, sequence, heads * head_dim]``.

    If ``value`` is Reshape and Transpose of such a tensor, returns that tensor. Otherwise adds nodes to ``new``.
    """
    transpose = producer(value, "Transpose")
    split = producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is not None and list(transpose.attributes.get_ints("perm", [])) == [0, 2, 1, 3] and split is not None:
        source = split.inputs[0]
        if source is not None and (source.shape is None or source.shape.rank() == 3):
            return source
    flat = new.op("Transpose", [value], {"perm": [0, 2, 1, 3]})
    return new.op("Reshape", [flat, new.op("Constant", [], {"value_ints": [0, 0, -1]})])
