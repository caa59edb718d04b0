"""A rewritten model, ready to be written."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graph_passes import FfnOutcome, LinearOutcome, WeightPlan
from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.artifact.rounding_records import KvCacheRecord, RoundingRecord
from prosparse_export.export.predicted_speedup import TextProfile
from prosparse_models import Checkpoint

__all__ = ["RewrittenModel"]


@dataclass
class RewrittenModel:
    """The graphs of a checkpoint after the passes, and what the passes did.

    Attributes:
        checkpoint: the PyTorch model.
        graphs: the graph, or the decoder followed by the encoder; emptied once written, to free their weights.
        outcomes: one per FFN.
        attention: reasons why attention was not fused.
        plan: how its matrices are stored.
        linears: matrices outside the FFNs that were stored in another format than f32.
        rounding: what the choice of scales and formats was measured on; None for float formats.
        approximation: the manifest's record of ``--approximate``, if given.
        profile: activation sparsity by FFN from ``--profile-text``, if given.
        traced: which layers were traced, or why all were; a line for the user.
        kv_cache: the manifest's record of an 8-bit KV cache.
        warnings: what makes the graph slower than it could be; lines for the user.
    """

    checkpoint: Checkpoint
    graphs: list[ir.Model]
    outcomes: list[FfnOutcome]
    attention: list[str]
    plan: WeightPlan
    linears: list[LinearOutcome] = field(default_factory=list)
    rounding: RoundingRecord | None = None
    approximation: ApproximationRecord | None = None
    profile: TextProfile | None = None
    traced: str = ""
    kv_cache: KvCacheRecord | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def rewritten(self) -> tuple[FfnOutcome, ...]:
        """The FFNs that became sparse operators."""
        return tuple(outcome for outcome in self.outcomes if not outcome.reason)

    @property
    def not_rewritten(self) -> tuple[FfnOutcome, ...]:
        """The FFNs that stay dense, with their reasons."""
        return tuple(outcome for outcome in self.outcomes if outcome.reason)
