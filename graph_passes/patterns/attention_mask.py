"""Read an attention mask: causal order, padding, and a sliding window."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.patterns.linear import scalar_constant
from graph_passes.patterns.standard_nodes import producer

__all__ = ["attention_window"]

_COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Or", "Xor"})


def attention_window(bias: ir.Value) -> int | str:
    """Return the sliding window of the mask ``bias`` in tokens, 0 if there is none, or why it is another mask.

    Causal order is one comparison: ``key <= query``. A sliding window is a second one: ``key > query - window``. A
    bidirectional prefix needs an Or or another comparison. Positional biases come from weights.
    """
    stack, seen, comparisons, reads_mask = [bias], set[int](), list[ir.Node](), False
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        node = value.producer()
        if node is None:
            reads_mask |= value.name == "attention_mask"
            if value.const_value is not None and value.const_value.size > 1 and value.dtype == ir.DataType.FLOAT:
                return "its mask contains weights"
            continue
        if node.op_type in _COMPARISONS:
            comparisons.append(node)
        stack.extend(v for v in node.inputs if v is not None)
    if reads_mask and len(comparisons) == 1:
        return 0
    window = _window(comparisons) if reads_mask and len(comparisons) == 2 else None
    if window is None:
        return (
            "its mask is not limited to causality, padding and a sliding window: "
            f"expected 1 comparison, got {len(comparisons)}"
        )
    return window


def _window(comparisons: list[ir.Node]) -> int | None:
    """Return the window of ``key <= query`` and ``key > query - window``, or None."""
    causal = next((node for node in comparisons if node.op_type == "LessOrEqual"), None)
    near = next((node for node in comparisons if node.op_type == "Greater"), None)
    first = producer(near.inputs[1], "Sub") if near is not None else None
    if causal is None or near is None or first is None:
        return None
    if near.inputs[0] is not causal.inputs[0] or first.inputs[0] is not causal.inputs[1]:
        return None
    window = scalar_constant(first.inputs[1])
    return int(window) if window is not None and window >= 1 and window == int(window) else None
