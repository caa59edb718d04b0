"""The result of `prosparse report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prosparse_export.artifact.json_records import to_json
from prosparse_export.artifact.manifest import Manifest
from prosparse_export.artifact.measured_records import ThresholdSearch
from prosparse_export.report.speed import LayerSpeed

__all__ = ["LayerReport", "Report"]


@dataclass(frozen=True)
class LayerReport:
    """One sparse FFN. A neuron is active if the operator computes it: see analysis/activation_counts.py.

    Attributes:
        module: the PyTorch module.
        d_ff: number of neurons.
        sparsity: activation sparsity, the fraction of exact zeros at down_proj's input.
        skipped: fraction of inactive neurons; lower than the sparsity for dReLU, otherwise equal.
        quantiles: the fraction of inactive neurons per token, at 5, 25, 50, 75 and 95%.
        histogram: fraction of tokens by fraction of active neurons, in bins of equal width from 0 to `histogram_end`.
        histogram_end: the largest fraction of active neurons of a token.
        activity: fraction of tokens for which a neuron is active, in descending order, at up to 200 ranks.
        dead: neurons active for no token.
        rare: neurons active for fewer than 1% of tokens, but not dead.
        hot: neurons active for at least half of the tokens.
        kept: fraction of a token's active neurons that were active for the previous token.
        kept_by_chance: the same if neurons were independent from token to token.
        by_position: fraction of inactive neurons by position in a window, in up to 32 groups.
        by_text: fraction of inactive neurons by text.
        ceiling: upper bound of the speedup: weights read without sparsity over weights read with it.
        speed: measured speed; None if it was not measured.
    """

    module: str
    d_ff: int
    sparsity: float
    skipped: float
    quantiles: tuple[float, ...]
    histogram: tuple[float, ...]
    histogram_end: float
    activity: tuple[float, ...]
    dead: int
    rare: int
    hot: int
    kept: float
    kept_by_chance: float
    by_position: tuple[float, ...]
    by_text: tuple[float, ...]
    ceiling: float
    speed: LayerSpeed | None


@dataclass(frozen=True)
class Report:
    """Activation sparsity of an artifact.

    Attributes:
        name: file name of the graph.
        sparsity: activation sparsity, mean over layers.
        tokens: number of tokens measured.
        context: tokens per window, limited by the model's context.
        texts: names of the texts, in the order of `LayerReport.by_text`.
        layers: in graph order.
        positions: upper ends of the groups of `LayerReport.by_position`.
        manifest: prosparse.json; None if there is none.
        calibration: the threshold search in the manifest, or None.
        machine: what the speed was measured on.
    """

    name: str
    sparsity: float
    tokens: int
    context: int
    texts: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    positions: tuple[int, ...]
    manifest: Manifest | None
    calibration: ThresholdSearch | None
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        values: dict[str, Any] = to_json(self)
        return values
