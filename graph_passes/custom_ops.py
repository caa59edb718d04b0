"""Operator names of domain ``com.prosparse``. docs/reference/operators.md describes each operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graph_passes.formats import FFN_FORMATS, FORMATS, FfnFormat, Format, is_quantized

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "ATTENTION",
    "DOMAIN",
    "GATED_ACTIVATIONS",
    "OPSET",
    "SCALE_OUTPUTS",
    "UNGATED_ACTIVATIONS",
    "VERSION",
    "AccuracyLevel",
    "CacheFormat",
    "accuracy_level",
    "applies_rope",
    "cache_format",
    "cached_attention",
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

CacheFormat = Literal["F32", "I8"]


def cached_attention(cache: CacheFormat, *, rotary: bool) -> str:
    """Return the name of the operator for attention over a KV cache, with RoPE or without."""
    return f"{'Rotary' if rotary else ''}CachedAttention{cache}"


def cache_format(op: str) -> CacheFormat:
    """Return the format of the KV cache of the attention operator named ``op``."""
    return "F32" if op.endswith("F32") else "I8"


def applies_rope(op: str) -> bool:
    """Return whether the attention operator named ``op`` applies RoPE."""
    return op.startswith("Rotary")


_CACHES: tuple[CacheFormat, ...] = ("F32", "I8")
ATTENTION = tuple(cached_attention(cache, rotary=rotary) for cache in _CACHES for rotary in (False, True))
"""The operators for attention over a KV cache."""


AccuracyLevel = Literal[0, 4]
"""0: activations are exact. 4: kernels of integer formats may round them to 8 bits, as in onnxruntime's MatMulNBits."""
_LEVEL_4 = "A8"


def _suffix(weights: FfnFormat, level: AccuracyLevel) -> str:
    return weights.upper() + (_LEVEL_4 if level == 4 and is_quantized(weights) else "")


def sparse_gated_ffn(weights: FfnFormat, level: AccuracyLevel = 0) -> str:
    """Return the name of the operator for FFNs with a gate. Float formats are always exact."""
    return f"SparseGatedFFN{_suffix(weights, level)}"


def sparse_ffn(weights: FfnFormat, level: AccuracyLevel = 0) -> str:
    """Return the name of the operator for ungated FFNs."""
    return f"SparseFFN{_suffix(weights, level)}"


def linear(weights: Format, level: AccuracyLevel = 0) -> str:
    """Return the name of the operator for dense linear layers."""
    return f"Linear{_suffix(weights, level)}"


def names() -> tuple[str, ...]:
    """Return the names of all operators."""
    levels: tuple[AccuracyLevel, ...] = (0, 4)
    ffns = [k(weights, level) for k in (sparse_gated_ffn, sparse_ffn) for weights in FFN_FORMATS for level in levels]
    linears = [linear(weights, level) for weights in FORMATS for level in levels]
    return (*dict.fromkeys(ffns + linears), *ATTENTION)


def operators_of(*models: ir.Model) -> tuple[str, ...]:
    """Return the names of our operators that the graphs use, in alphabetical order."""
    nodes = (node for model in models for node in model.graph.all_nodes())
    return tuple(sorted({node.op_type for node in nodes if node.domain == DOMAIN}))


def accuracy_level(op: str) -> AccuracyLevel:
    """Return the accuracy level of the operator named ``op``."""
    return 4 if op.endswith(_LEVEL_4) else 0


def format_in(op: str) -> FfnFormat:
    """Return the format of the matrices of the operator named ``op``."""
    op = op.removesuffix(_LEVEL_4)
    return max((f for f in FFN_FORMATS if op.endswith(f.upper())), key=len)  # BF16 ends with F16 too, I4I8 with I8


def without_format(op: str) -> str:
    """Return the operator name ``op`` without format and accuracy level: SparseGatedFFN, SparseFFN or Linear."""
    return op.removesuffix(_LEVEL_4).removesuffix(format_in(op).upper())
