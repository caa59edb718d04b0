"""Left-align the rows of a decoder's graph, for attention that expects padding on the right."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.linear import scalar_constant

__all__ = ["left_align_rows", "lm_head"]

_ELEMENTWISE = frozenset({"Cast", "Div", "Identity", "Mul", "Tanh"})  # of scaled or capped logits


def left_align_rows(graph: ir.Graph, inputs: Mapping[str | None, ir.Value], head: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Left-align the rows of the whole graph, so that padding is on the right.

    input_ids and position_ids are rolled by each row's padding, the last hidden state is rolled back. Without padding,
    and in decode, they roll by 0.

    Args:
        graph: a decoder.
        inputs: its inputs by name.
        head: from `lm_head`.

    Returns:
        ``seqlens_k`` [batch] (last slot in use) and ``total_sequence_length`` [], both int32.
    """
    ids, mask, positions = inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]
    new = tape.Tape()
    flags = new.op("Cast", [mask], {"to": ir.DataType.INT32})
    shape = new.op("Shape", [ids])  # [batch, sequence]
    sequence = new.op("Shape", [ids], {"start": 1, "end": 2})
    width = new.op("Shape", [mask], {"start": 1, "end": 2})
    zero, one = (new.op("Constant", [], {"value_ints": [n]}) for n in (0, 1))
    recent = new.op("Slice", [flags, new.op("Sub", [width, sequence]), width, one])  # of the new tokens
    padding = new.op("ArgMax", [recent], {"axis": 1, "keepdims": 1})  # first 1: [batch, 1]
    count = new.op("Squeeze", [sequence])
    steps = new.op("Range", [new.op("Squeeze", [zero]), count, new.op("Squeeze", [one])])
    there = new.op("Mod", [new.op("Expand", [new.op("Add", [steps, padding]), shape]), sequence])
    back = new.op("Mod", [new.op("Expand", [new.op("Sub", [steps, padding]), shape]), sequence])
    aligned_ids = new.op("GatherElements", [ids, there], {"axis": 1})
    aligned_positions = new.op("GatherElements", [positions, there], {"axis": 1})
    back_rows = new.op("Unsqueeze", [back, new.op("Constant", [], {"value_ints": [-1]})])
    used = new.op("ReduceSum", [flags, one], {"keepdims": 0})
    int_one, int_zero = (new.op("Constant", [], {"value": ir.tensor(n, dtype=ir.DataType.INT32)}) for n in (1, 0))
    seqlens = new.op("Max", [new.op("Sub", [used, int_one]), int_zero])
    total = new.op("Squeeze", [new.op("Cast", [width], {"to": ir.DataType.INT32})])
    ours = set(map(id, new.nodes))
    for old, aligned in ((ids, aligned_ids), (positions, aligned_positions)):
        aligned.type, aligned.shape = old.type, old.shape
        for user, index in list(old.uses()):
            if id(user) not in ours and user.op_type != "Shape":
                user.replace_input_with(index, aligned)
    graph.insert_before(graph[0], list(new.nodes))
    _restore_rows(graph, head, back_rows)
    return seqlens, total


def lm_head(graph: ir.Graph) -> ir.Node | None:
    """Return the node that computes the logits, before they are scaled or capped: a MatMul, Gemm, or its bias."""
    node = graph.outputs[0].producer()
    while node is not None and node.domain == "" and node.op_type in _ELEMENTWISE:
        value = next((v for v in node.inputs if v is not None and scalar_constant(v) is None), None)
        node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in ("MatMul", "Gemm", "Add") else None


def _restore_rows(graph: ir.Graph, head: ir.Node, rows: ir.Value) -> None:
    """Restore the order of the last hidden state, ``[batch, sequence, d_model]``, or else of the logits."""
    hidden = head.inputs[0] if head.op_type == "MatMul" else None
    if hidden is not None and hidden.shape is not None and hidden.shape.rank() == 3:
        restored = ir.node("GatherND", [hidden, rows], {"batch_dims": 1})
        restored.outputs[0].type, restored.outputs[0].shape = hidden.type, hidden.shape
        graph.insert_before(head, [restored])
        head.replace_input_with(0, restored.outputs[0])
        return
    logits = graph.outputs[0]
    restored = ir.node("GatherND", [logits, rows], {"batch_dims": 1})
    restored.outputs[0].type, restored.outputs[0].shape = logits.type, logits.shape
    last = logits.producer()
    assert last is not None
    graph.insert_after(last, [restored])
    name, logits.name = logits.name, f"{logits.name}.aligned"
    restored.outputs[0].name = name
    graph.outputs[0] = restored.outputs[0]
