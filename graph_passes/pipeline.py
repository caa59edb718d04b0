"""The order in which the passes run."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes.custom_ops import Format
from graph_passes.ffn_pattern import FfnOutcome
from graph_passes.fuse_attention import FuseGroupQueryAttentionPass
from graph_passes.fuse_norms import FuseSkipRmsNormPass
from graph_passes.fuse_rotary import FuseRotaryEmbeddingPass
from graph_passes.fuse_sparse_ffn import FuseSparseFfnPass
from graph_passes.name_interface import NameInterfacePass

__all__ = ["export_pipeline"]


def export_pipeline(
    outcomes: list[FfnOutcome],
    refusals: list[str] | None = None,
    *,
    fuse_attention: bool = True,
    weights: Format = "f32",
) -> ir.passes.Sequential:
    """Return the passes that every export applies, first to last.

    Args:
        outcomes: receives one entry per feed-forward block.
        refusals: receives one line per attention that was not fused.
        fuse_attention: use onnxruntime's attention, rotary and norm operators; without them the graph is
            standard ONNX but for the feed-forward blocks, and prefill may continue any batch.
        weights: how the feed-forward blocks' matrices are stored.
    """
    fusions: list[ir.passes.PassBase] = []
    if fuse_attention:
        fusions = [
            FuseRotaryEmbeddingPass(),
            FuseGroupQueryAttentionPass(refusals),  # after rotary: takes its Reshape and Transpose away
            FuseSkipRmsNormPass(),
        ]
    return ir.passes.Sequential(
        NameInterfacePass(),  # first: it also makes the number of KV heads a number
        common.CommonSubexpressionEliminationPass(),  # so that layers share one mask, one cos, one sin
        FuseSparseFfnPass(outcomes, weights),
        *fusions,
        common.RemoveUnusedNodesPass(),  # what the fusions left behind, with its initializers
        common.ClearMetadataAndDocStringPass(),  # after the FFN pass, which reads module paths from it
        common.TopologicalSortPass(),
        common.CheckerPass(),
    )
