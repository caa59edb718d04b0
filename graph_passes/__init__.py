"""Graph passes: ``onnx_ir.Model`` in, ``onnx_ir.Model`` out. No torch, no onnxruntime, no disk."""

from graph_passes.custom_ops import FFN_FORMATS, FORMATS, FfnFormat, Format, format_of, is_quantized
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
from graph_passes.weights.packed_names import parts_of
from graph_passes.weights.weight_format import WeightRangeError, dequantize, quantize, rounded

__all__ = [
    "FFN_FORMATS",
    "FORMATS",
    "LOGITS_TO_KEEP",
    "FfnFormat",
    "FfnOutcome",
    "Format",
    "FuseGroupQueryAttentionPass",
    "FuseLinearPass",
    "FuseRotaryEmbeddingPass",
    "FuseSkipRmsNormPass",
    "FuseSparseFfnPass",
    "InlineOperatorsPass",
    "KeepLogitsPass",
    "LinearOutcome",
    "NameInterfacePass",
    "PackQkvPass",
    "WeightRangeError",
    "dequantize",
    "export_pipeline",
    "format_of",
    "is_quantized",
    "optimize_pipeline",
    "parts_of",
    "quantize",
    "rounded",
]
