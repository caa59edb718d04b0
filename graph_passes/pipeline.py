"""The order in which the passes run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.custom_ops import DOMAIN, AccuracyLevel
from graph_passes.formats import FfnFormat
from graph_passes.fuse_attention import FuseGroupQueryAttentionPass
from graph_passes.fuse_linear import FuseLinearPass, LinearOutcome
from graph_passes.fuse_multi_head_attention import FuseMultiHeadAttentionPass
from graph_passes.fuse_norms import FuseSkipRmsNormPass
from graph_passes.fuse_rotary import FuseRotaryEmbeddingPass
from graph_passes.fuse_sparse_ffn import FuseSparseFfnPass
from graph_passes.inline_operators import InlineOperatorsPass
from graph_passes.keep_logits import KeepLogitsPass
from graph_passes.name_interface import NameInterfacePass
from graph_passes.pack_qkv import PackQkvPass
from graph_passes.patterns.ffn_pattern import FfnOutcome
from graph_passes.weights.quantization import Rounding
from graph_passes.weights.weight_plan import WeightPlan

__all__ = ["export_pipeline", "optimize_pipeline"]


def export_pipeline(
    outcomes: list[FfnOutcome],
    not_fused: list[str] | None = None,
    *,
    fuse_attention: bool = True,
    decoder_only: bool = True,
    plan: WeightPlan | None = None,
    linears: list[LinearOutcome] | None = None,
    dense: Mapping[str, str] | None = None,
    decomposed: bool = False,
    positions: int | None = None,
    warnings: list[str] | None = None,
    level: AccuracyLevel = 0,
) -> ir.passes.Sequential:
    """Return the passes of an export, in order.

    Args:
        outcomes: receives one entry per FFN.
        not_fused: receives one line per attention that was not fused.
        fuse_attention: use onnxruntime's attention, RoPE and norm operators. Without them the graph is standard ONNX
            except for the FFNs, and prefill can continue a batch of any size.
        decoder_only: attention has a KV cache and becomes GroupQueryAttention. Otherwise, in encoders and
            encoder-decoders, it becomes MultiHeadAttention.
        plan: format of each matrix; None for f32.
        linears: receives one entry per matrix outside the FFNs that is stored in another format than f32.
        dense: FFNs that stay dense: reasons by the module path of down_proj.
        decomposed: write standard ONNX instead of our operators.
        positions: context length in tokens, if it is known.
        warnings: receives what makes the graph slower than it could be.
        level: accuracy level of the operators with integer weights.
    """
    plan = plan or WeightPlan.of("f32")
    fusions: list[ir.passes.PassBase] = []
    if fuse_attention and not decoder_only:
        fusions = [FuseMultiHeadAttentionPass(not_fused)]
    elif fuse_attention:
        fusions = [
            FuseRotaryEmbeddingPass(),
            FuseGroupQueryAttentionPass(not_fused),  # after RoPE, whose Reshape and Transpose it removes
            common.RemoveUnusedNodesPass(),  # the former readers of q, k and v
            PackQkvPass(positions, warnings),
            FuseSkipRmsNormPass(),
        ]
    return ir.passes.Sequential(
        NameInterfacePass(),  # first: it also makes the number of KV heads an integer
        common.CommonSubexpressionEliminationPass(),  # so that layers share the mask, cos and sin
        FuseSparseFfnPass(outcomes, plan, dense, level),
        *fusions,
        common.RemoveUnusedNodesPass(),  # MatMuls of the replaced FFNs
        KeepLogitsPass(),
        FuseLinearPass(plan, linears, level),  # after attention, whose patterns start from MatMul
        *([InlineOperatorsPass()] if decomposed else []),
        common.RemoveUnusedNodesPass(),  # leftovers of the fusions, with their initializers
        common.ClearMetadataAndDocStringPass(),  # after the FFN pass, which reads module paths from it
        common.TopologicalSortPass(),
        common.CheckerPass(),
    )


def optimize_pipeline(
    outcomes: list[FfnOutcome],
    *,
    weights: FfnFormat | None = None,
    decomposed: bool = False,
    rounding: Rounding | None = None,
    level: AccuracyLevel = 0,
) -> ir.passes.Sequential:
    """Return the passes for a third-party file, in order. Its inputs and outputs do not change.

    Args:
        outcomes: receives one entry per FFN.
        weights: format of the FFNs' matrices; None keeps their float type.
        decomposed: write standard ONNX instead of our operators.
        rounding: as in `quantize`.
        level: accuracy level of the operators with integer weights.
    """
    return ir.passes.Sequential(
        common.InlinePass(lambda function: function.domain != DOMAIN),  # an FFN may span functions
        common.LiftConstantsToInitializersPass(lift_all_constants=False),  # weights may be Constant nodes
        common.ShapeInferencePass(),  # recognizing a bias needs ranks
        FuseSparseFfnPass(outcomes, WeightPlan.of(weights, rounding) if weights is not None else None, level=level),
        *([InlineOperatorsPass()] if decomposed else []),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )
