"""Look up the standard ONNX node that produces a value."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["producer"]


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the producer of ``value`` if it is a standard operator of one of these types, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None
