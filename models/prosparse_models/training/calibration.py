"""Threshold shifting: the largest FATReLU threshold that a perplexity budget allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.activation import has_up_relu
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn
from prosparse_models.loading.substitution import set_thresholds
from prosparse_models.sparsity import Measurement, measure

__all__ = ["Calibration", "Trial", "calibrate"]

PAPER_THRESHOLDS = (0.005, 0.01, 0.02, 0.03)  # arXiv:2402.13516, Table 9
_BINS_PER_OCTAVE, _OCTAVES, _LOWEST = 16, 40, -24  # gate values from 2^-24 to 2^16
_MAX_DOUBLINGS = 40


@dataclass(frozen=True)
class Trial:
    """One measurement of the search.

    Attributes:
        value: the search parameter: one threshold for all layers, or the fraction of each layer's energy dropped.
        thresholds: FATReLU t per layer.
        measurement: perplexity and sparsity with these thresholds.
        within: whether the perplexity is within the budget.
    """

    value: float
    thresholds: tuple[float, ...]
    measurement: Measurement
    within: bool


@dataclass(frozen=True)
class Calibration:
    """All trials, and the choice.

    Attributes:
        trials: by increasing value; the first is t = 0.
        chosen: the trial with the largest value for which it and all smaller ones are within the budget.
        limit: the perplexity that the budget allows.
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    limit: float


def calibrate(
    model: nn.Module,
    ffns: Sequence[Ffn],
    rows: Sequence[torch.Tensor],
    *,
    budget: float,
    per_layer: bool = False,
    candidates: Sequence[float] = PAPER_THRESHOLDS,
    refinements: int = 6,
    progress: ProgressCallback = no_progress,
) -> Calibration:
    """Find the largest threshold whose perplexity is at most ``(1 + budget)`` times that of t = 0.

    The candidates are tried first, then the largest is doubled until the budget is exceeded, then bisection runs
    between the last value within the budget and the first beyond it. Perplexity is assumed to increase with t; where
    it does not, the choice and all smaller values tried are still within the budget.

    With ``per_layer``, one search parameter q drives all layers: layer l gets the threshold below which active neurons
    hold the fraction q of the layer's energy (sum over tokens and neurons of x1 squared). Layers with large activations
    thus get large thresholds.

    Args:
        model: with ReLU or FATReLU in ``ffns``. It is left with the chosen thresholds.
        ffns: its FFNs.
        rows: calibration text, token ids [sequence] each.
        budget: allowed increase in perplexity, as a fraction: 0.01 is 1%.
        per_layer: one threshold per layer instead of one for all.
        candidates: thresholds to try in any case (not with ``per_layer``).
        refinements: number of bisections.
        progress: called per trial, with the rows measured.

    Raises:
        TrainingError: the activation is not a ReLU, or the model's perplexity is not finite.

    Source:
        Song et al., "ProSparse", section 3.2, equation 3, and Table 9. The search and the per-layer choice are ours:
        the paper picks one t of four by benchmark scores.
    """
    _check_relu(ffns)
    search = _Search(model, ffns, rows, budget=budget, per_layer=per_layer, progress=progress)
    for value in [1e-4, 1e-3, 1e-2] if per_layer else sorted(c for c in candidates if c > 0):
        search.run(value)
    low, high = search.bracket()
    for _ in range(_MAX_DOUBLINGS):
        if high < math.inf or (per_layer and low >= 0.5):
            break
        value = 2.0 * low if low else (1e-4 if per_layer else 1e-3)
        low, high = (value, high) if search.run(value).within else (low, value)
    for _ in range(refinements if high < math.inf else 0):
        middle = float(f"{0.5 * (low + high):.4g}")  # more digits make no difference
        low, high = (middle, high) if search.run(middle).within else (low, middle)
    chosen = search.trials[low]
    set_thresholds(ffns, chosen.thresholds)
    return Calibration(tuple(search.trials[value] for value in sorted(search.trials)), chosen, search.limit)


class _Search:
    """Trials by value of the search parameter; the first is t = 0, which sets the limit."""

    def __init__(
        self,
        model: nn.Module,
        ffns: Sequence[Ffn],
        rows: Sequence[torch.Tensor],
        *,
        budget: float,
        per_layer: bool,
        progress: ProgressCallback,
    ) -> None:
        self._model, self._ffns, self._rows, self._progress = model, ffns, rows, progress
        self._energy = _energy_by_gate(model, ffns, rows) if per_layer else None
        self.trials: dict[float, Trial] = {}
        self.limit = math.inf
        start = self.run(0.0).measurement.perplexity
        if not math.isfinite(start):
            raise TrainingError(
                f"calibrate: expected a finite perplexity at t = 0, got {start}",
                hint="check the model's weights, and the text",
            )
        self.limit = start * (1.0 + budget)

    def run(self, value: float) -> Trial:
        """Return the trial of ``value``; each value is measured once."""
        if value not in self.trials:
            energy = self._energy
            thresholds = (value,) * len(self._ffns) if energy is None else tuple(_quantile(e, value) for e in energy)
            set_thresholds(self._ffns, thresholds)
            stage = f"perplexity at {'t' if energy is None else 'q'} = {value:.4g}"
            measurement = measure(self._model, self._ffns, self._rows, stage=stage, progress=self._progress)
            self.trials[value] = Trial(value, thresholds, measurement, measurement.perplexity <= self.limit)
        return self.trials[value]

    def bracket(self) -> tuple[float, float]:
        """Return the largest value tried before the budget is exceeded, and the one that exceeds it (or infinity)."""
        low = 0.0
        for value in sorted(self.trials):
            if value and not self.trials[value].within:
                return low, value
            low = value
        return low, math.inf


def _check_relu(ffns: Sequence[Ffn]) -> None:
    z = torch.tensor([-1.0, -0.01, 1e6])
    for ffn in ffns:
        if has_up_relu(ffn.up):
            raise TrainingError(
                f"{ffn.name}: expected ReLU or FATReLU, got dReLU, which has no threshold",
                hint="dReLU models need no calibration",
            )
        if not torch.equal(ffn.activation(z), torch.tensor([0.0, 0.0, 1e6])):
            raise TrainingError(
                f"{ffn.name}: expected ReLU or FATReLU, got {ffn.activation!r}",
                hint="train the model with prosparse sparsify first",
            )


@torch.no_grad()
def _energy_by_gate(model: nn.Module, ffns: Sequence[Ffn], rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return, per FFN, a histogram over the gate's value (bins of 1/16 octave) of the sum of x1 squared."""
    set_thresholds(ffns, [0.0] * len(ffns))
    histograms = [torch.zeros(_OCTAVES * _BINS_PER_OCTAVE, dtype=torch.float64) for _ in ffns]
    gates: dict[int, torch.Tensor] = {}
    handles = []
    for index, ffn in enumerate(ffns):

        def keep(_: nn.Module, arguments: tuple[torch.Tensor, ...], index: int = index) -> None:
            gates[index] = arguments[0]

        def count(_: nn.Module, arguments: tuple[torch.Tensor, ...], index: int = index) -> None:
            gate, x1 = gates.pop(index).flatten(), arguments[0].flatten()
            active = gate > 0
            bins = ((gate[active].float().log2() - _LOWEST) * _BINS_PER_OCTAVE).floor().long()
            bins = bins.clamp(0, _OCTAVES * _BINS_PER_OCTAVE - 1).cpu()
            histograms[index].index_add_(0, bins, x1[active].double().square().cpu())

        handles.append(ffn.activation.register_forward_pre_hook(keep))
        handles.append(ffn.down.register_forward_pre_hook(count))
    try:
        for row in rows:
            model(input_ids=row[None].to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return histograms


def _quantile(energy: torch.Tensor, share: float) -> float:
    """Return the largest bin edge below which at most ``share`` of ``energy`` lies; 0 for share 0."""
    total = energy.sum()
    if share <= 0 or total <= 0:
        return 0.0
    below = int((energy.cumsum(0) <= share * total).sum())
    return float(2.0 ** (below / _BINS_PER_OCTAVE + _LOWEST)) if below else 0.0
