"""Graph passes: ``onnx_ir.Model`` in, ``onnx_ir.Model`` out. No torch, no onnxruntime, no disk."""

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
from graph_passes.simplify_trace import merge_equal, simplify_trace
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
    "merge_equal",
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
    "simplify_trace",
]
