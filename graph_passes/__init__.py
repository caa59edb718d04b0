"""Graph passes: ``onnx_ir.Model`` in, ``onnx_ir.Model`` out. No torch, no onnxruntime, no disk.

Names are imported when they are first used: running an artifact needs names of operators and formats, but no onnx_ir.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graph_passes.formats import (
        FFN_FORMATS,
        FORMAT_SPECS,
        FORMATS,
        FfnFormat,
        Format,
        FormatSpec,
        float_format,
        format_of,
        is_quantized,
    )
    from graph_passes.fuse_attention import FuseGroupQueryAttentionPass
    from graph_passes.fuse_linear import FuseLinearPass, LinearOutcome
    from graph_passes.fuse_norms import FuseSkipRmsNormPass
    from graph_passes.fuse_rotary import FuseRotaryEmbeddingPass
    from graph_passes.fuse_sparse_ffn import FuseSparseFfnPass
    from graph_passes.inline_operators import InlineOperatorsPass
    from graph_passes.keep_logits import LOGITS_TO_KEEP, KeepLogitsPass
    from graph_passes.name_interface import NameInterfacePass
    from graph_passes.pack_qkv import PackQkvPass
    from graph_passes.patterns.ffn_pattern import FfnOutcome
    from graph_passes.pipeline import export_pipeline, optimize_pipeline
    from graph_passes.stamp_layers import CannotStampError, LayerTensor, StampLayersPass
    from graph_passes.weights.group_scales import WeightRangeError, search_factors
    from graph_passes.weights.narrow_tensor import NarrowTensor
    from graph_passes.weights.output_powers import are_output_powers, divided, output_powers
    from graph_passes.weights.packed_names import parts_of
    from graph_passes.weights.quantization import (
        Rounding,
        dequantize,
        pack,
        plausible_groups,
        plausible_integers,
        plausible_scales,
        quantize,
        rounded,
        scales_of,
    )
    from graph_passes.weights.weight_plan import RoundedMatrix, WeightPlan

__all__ = [
    "FFN_FORMATS",
    "FORMATS",
    "FORMAT_SPECS",
    "LOGITS_TO_KEEP",
    "CannotStampError",
    "FfnFormat",
    "FfnOutcome",
    "Format",
    "FormatSpec",
    "FuseGroupQueryAttentionPass",
    "FuseLinearPass",
    "FuseRotaryEmbeddingPass",
    "FuseSkipRmsNormPass",
    "FuseSparseFfnPass",
    "InlineOperatorsPass",
    "KeepLogitsPass",
    "LayerTensor",
    "LinearOutcome",
    "NameInterfacePass",
    "NarrowTensor",
    "PackQkvPass",
    "RoundedMatrix",
    "Rounding",
    "StampLayersPass",
    "WeightPlan",
    "WeightRangeError",
    "are_output_powers",
    "dequantize",
    "divided",
    "export_pipeline",
    "float_format",
    "format_of",
    "is_quantized",
    "optimize_pipeline",
    "output_powers",
    "pack",
    "parts_of",
    "plausible_groups",
    "plausible_integers",
    "plausible_scales",
    "quantize",
    "rounded",
    "scales_of",
    "search_factors",
]

_HOME = {
    "CannotStampError": "stamp_layers",
    "FFN_FORMATS": "formats",
    "FORMATS": "formats",
    "FORMAT_SPECS": "formats",
    "FfnFormat": "formats",
    "FfnOutcome": "patterns.ffn_pattern",
    "Format": "formats",
    "FormatSpec": "formats",
    "FuseGroupQueryAttentionPass": "fuse_attention",
    "FuseLinearPass": "fuse_linear",
    "FuseRotaryEmbeddingPass": "fuse_rotary",
    "FuseSkipRmsNormPass": "fuse_norms",
    "FuseSparseFfnPass": "fuse_sparse_ffn",
    "InlineOperatorsPass": "inline_operators",
    "KeepLogitsPass": "keep_logits",
    "LOGITS_TO_KEEP": "keep_logits",
    "LayerTensor": "stamp_layers",
    "LinearOutcome": "fuse_linear",
    "NameInterfacePass": "name_interface",
    "NarrowTensor": "weights.narrow_tensor",
    "PackQkvPass": "pack_qkv",
    "RoundedMatrix": "weights.weight_plan",
    "Rounding": "weights.quantization",
    "StampLayersPass": "stamp_layers",
    "WeightPlan": "weights.weight_plan",
    "WeightRangeError": "weights.group_scales",
    "are_output_powers": "weights.output_powers",
    "dequantize": "weights.quantization",
    "divided": "weights.output_powers",
    "export_pipeline": "pipeline",
    "float_format": "formats",
    "format_of": "formats",
    "is_quantized": "formats",
    "optimize_pipeline": "pipeline",
    "output_powers": "weights.output_powers",
    "pack": "weights.quantization",
    "parts_of": "weights.packed_names",
    "plausible_groups": "weights.quantization",
    "plausible_integers": "weights.quantization",
    "plausible_scales": "weights.quantization",
    "quantize": "weights.quantization",
    "rounded": "weights.quantization",
    "scales_of": "weights.quantization",
    "search_factors": "weights.group_scales",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
