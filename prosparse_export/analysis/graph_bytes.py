"""Count the bytes that a decode step reads, from the graph."""

from __future__ import annotations

import math

import onnx

from graph_passes.custom_ops import ATTENTION, DOMAIN
from graph_passes.formats import FORMAT_SPECS, format_of
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.analysis.roofline import Ffn

__all__ = ["ffn_shape", "initializer_bytes", "other_bytes"]

_BITS = {1: 32, 10: 16, 16: 16, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 21: 4, 22: 4}  # by onnx.TensorProto.DataType
_LOOKUPS = frozenset({"Gather", "GroupQueryAttention", *ATTENTION})  # these read single rows of their initializers


def initializer_bytes(tensor: onnx.TensorProto) -> int:
    """Return the size of a tensor's elements in bytes, 32 bits each for types not listed."""
    return int(math.prod(tensor.dims)) * _BITS.get(tensor.data_type, 32) // 8


def ffn_shape(model: onnx.ModelProto, node: FfnNode, skipped: float) -> Ffn:
    """Return the sizes of a sparse FFN of which the fraction ``skipped`` of neurons is inactive."""
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    first = dims[node.node.input[1]]
    width = FORMAT_SPECS[format_of(node.weights, is_down=False)].columns(first[1])
    return Ffn(width, first[0], node.gated, node.weights, skipped)


def other_bytes(model: onnx.ModelProto, context: int) -> int:
    """Return the bytes that a token reads outside the sparse FFNs: other weights, and ``context`` tokens of KV cache.

    Embedding tables and attention's cos/sin cache do not count: a token reads one row of each. Attention with a sliding
    window reads at most the window.
    """
    sizes = {tensor.name: initializer_bytes(tensor) for tensor in model.graph.initializer}
    read: set[str] = set()
    for node in model.graph.node:
        sparse = node.domain == DOMAIN and "FFN" in node.op_type
        if not sparse and node.op_type not in _LOOKUPS:
            read.update(name for name in node.input if name in sizes)
    windows = _windows(model)
    cache: int = 0
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            dims = value.type.tensor_type.shape.dim
            bits = _BITS.get(value.type.tensor_type.elem_type, 32)
            cache += (
                int(dims[1].dim_value * dims[3].dim_value) * min(context, windows.get(value.name, context)) * bits // 8
            )
    return int(sum(sizes[name] for name in read)) + cache


def _windows(model: onnx.ModelProto) -> dict[str, int]:
    """Return the sliding windows of fused attention by name of the cache input."""
    windows = {}
    for node in model.graph.node:
        window = next((a.i for a in node.attribute if a.name == "local_window_size"), 0)
        windows.update({name: window for name in node.input if window > 0 and name.startswith("past_key_values.")})
    return windows
