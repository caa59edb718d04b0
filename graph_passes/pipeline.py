"""The order in which the passes run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.custom_ops import DOMAIN
from graph_passes.formats import FfnFormat, Format
from graph_passes.fuse_attention import FuseGroupQueryAttentionPass
from graph_passes.fuse_linear import FuseLinearPass, LinearOutcome
from graph_passes.fuse_norms import FuseSkipRmsNormPass
from graph_passes.fuse_rotary import FuseRotaryEmbeddingPass
from graph_passes.fuse_sparse_ffn import FuseSparseFfnPass
from graph_passes.inline_operators import InlineOperatorsPass
from graph_passes.keep_logits import KeepLogitsPass
from graph_passes.name_interface import NameInterfacePass
from graph_passes.pack_qkv import PackQkvPass
from graph_passes.patterns.ffn_pattern import FfnOutcome

__all__ = ["export_pipeline", "optimize_pipeline"]


def export_pipeline(
    outcomes: list[FfnOutcome],
    refusals: list[str] | None = None,
    *,
    fuse_attention: bool = True,
    weights: FfnFormat = "f32",
    other_weights: Format = "f32",
    linears: list[LinearOutcome] | None = None,
    dense: Mapping[str, str] | None = None,
    decomposed: bool = False,
    positions: int | None = None,
) -> ir.passes.Sequential:
    """Return the passes that every export applies, first to last.

    Args:
        outcomes: receives one entry per feed-forward block.
        refusals: receives one line per attention that was not fused.
        fuse_attention: use onnxruntime's attention, rotary and norm operators; without them the graph is
            standard ONNX but for the feed-forward blocks, and prefill may continue any batch.
        weights: how the feed-forward blocks' matrices are stored.
        other_weights: how the others are: attention's, lm_head's, the embedding.
        linears: receives one entry per matrix that is stored in ``other_weights``, if that is not f32.
        dense: feed-forward blocks that stay as they are: reasons by the module path of down_proj.
        decomposed: write standard ONNX instead of our operators.
        positions: the longest text, in tokens, if it is known.
    """
    fusions: list[ir.passes.PassBase] = []
    if fuse_attention:
        fusions = [
            FuseRotaryEmbeddingPass(),
            FuseGroupQueryAttentionPass(refusals),  # after rotary: takes its Reshape and Transpose away
            common.RemoveUnusedNodesPass(),  # what read q, k and v before
            PackQkvPass(positions),
            FuseSkipRmsNormPass(),
        ]
    return ir.passes.Sequential(
        NameInterfacePass(),  # first: it also makes the number of KV heads a number
        common.CommonSubexpressionEliminationPass(),  # so that layers share one mask, one cos, one sin
        FuseSparseFfnPass(outcomes, weights, dense),
        *fusions,
        common.RemoveUnusedNodesPass(),  # products of the blocks that the operators replaced
        KeepLogitsPass(),
        FuseLinearPass(other_weights, linears),  # after attention, whose patterns start from plain products
        *([InlineOperatorsPass()] if decomposed else []),
        common.RemoveUnusedNodesPass(),  # what the fusions left behind, with its initializers
        common.ClearMetadataAndDocStringPass(),  # after the FFN pass, which reads module paths from it
        common.TopologicalSortPass(),
        common.CheckerPass(),
    )


def optimize_pipeline(
    outcomes: list[FfnOutcome], *, weights: FfnFormat | None = None, decomposed: bool = False
) -> ir.passes.Sequential:
    """Return the passes for a file that another exporter wrote, first to last; its interface stays as it is.

    Args:
        outcomes: receives one entry per feed-forward block.
        weights: how the blocks' matrices are stored; None for their own float type.
        decomposed: write standard ONNX instead of our operators.
    """
    return ir.passes.Sequential(
        common.InlinePass(lambda function: function.domain != DOMAIN),  # a block may be spread over functions
        common.LiftConstantsToInitializersPass(lift_all_constants=False),  # weights may be Constant nodes
        common.ShapeInferencePass(),  # a bias of more dimensions than its product is none
        FuseSparseFfnPass(outcomes, weights),
        *([InlineOperatorsPass()] if decomposed else []),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )
