"""Operator names of domain ``com.prosparse``. docs/reference/operators.md describes each operator."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.formats import FFN_FORMATS, FORMATS, FfnFormat, Format

__all__ = [
    "ATTENTION",
    "CACHED_ATTENTION",
    "DOMAIN",
    "GATED_ACTIVATIONS",
    "OPSET",
    "ROTARY_CACHED_ATTENTION",
    "SCALE_OUTPUTS",
    "UNGATED_ACTIVATIONS",
    "VERSION",
    "format_in",
    "linear",
    "names",
    "operators_of",
    "sparse_ffn",
    "sparse_gated_ffn",
    "without_format",
]

DOMAIN = "com.prosparse"
VERSION = 1
OPSET = 20
"""The ai.onnx opset that the exporter emits."""

SCALE_OUTPUTS = ".scale_outputs"
"""Ends the name of the Mul after an FFN whose down_proj is divided by powers of two."""

UNGATED_ACTIVATIONS = frozenset({"relu", "relu2", "fatrelu"})
GATED_ACTIVATIONS = UNGATED_ACTIVATIONS | {"drelu", "silu"}

CACHED_ATTENTION, ROTARY_CACHED_ATTENTION = "CachedAttentionI8", "RotaryCachedAttentionI8"
ATTENTION = frozenset({CACHED_ATTENTION, ROTARY_CACHED_ATTENTION})
"""Attention over a KV cache in 8 bits; the second applies RoPE."""


def sparse_gated_ffn(weights: FfnFormat) -> str:
    """Return the name of the operator for FFNs with a gate."""
    return f"SparseGatedFFN{weights.upper()}"


def sparse_ffn(weights: FfnFormat) -> str:
    """Return the name of the operator for ungated FFNs."""
    return f"SparseFFN{weights.upper()}"


def linear(weights: Format) -> str:
    """Return the name of the operator for dense linear layers."""
    return f"Linear{weights.upper()}"


def names() -> tuple[str, ...]:
    """Return the names of all operators."""
    ffns = tuple(kind(weights) for kind in (sparse_gated_ffn, sparse_ffn) for weights in FFN_FORMATS)
    return (*ffns, *(linear(weights) for weights in FORMATS), CACHED_ATTENTION, ROTARY_CACHED_ATTENTION)


def operators_of(*models: ir.Model) -> tuple[str, ...]:
    """Return the names of our operators that the graphs use, in alphabetical order."""
    nodes = (node for model in models for node in model.graph.all_nodes())
    return tuple(sorted({node.op_type for node in nodes if node.domain == DOMAIN}))


def format_in(op: str) -> FfnFormat:
    """Return the format that the operator name ``op`` ends with."""
    return max((f for f in FFN_FORMATS if op.endswith(f.upper())), key=len)  # BF16 ends with F16 too, I4I8 with I8


def without_format(op: str) -> str:
    """Return the operator name ``op`` without its format: SparseGatedFFN, SparseFFN or Linear."""
    return op.removesuffix(format_in(op).upper())
