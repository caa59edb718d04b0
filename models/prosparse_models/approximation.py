"""Make a SwiGLU model sparse without training, at some cost in perplexity: zero its smallest activations (CATS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn, find_ffns

__all__ = ["ThresholdedSilu", "apply_thresholded_silu", "silu_ffns", "silu_thresholds"]

_BINS_PER_OCTAVE, _LOWEST, _OCTAVES = 128, -32, 48  # magnitudes from 2^-32 to 2^16, each bin 0.5% wide


class ThresholdedSilu(nn.Module):
    """SiLU where its magnitude is above ``threshold``, else 0. NaN stays NaN.

    Args:
        threshold: >= 0 and finite, in units of the activation; rounded to float32.

    Shape:
        Any; the result has the input's shape and dtype.

    Raises:
        ValueError: ``threshold`` is negative or not finite.

    Source:
        Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models", COLM 2024
        (arXiv:2404.08763), section 4: the threshold is on the magnitude of SiLU's output.

    Example:
        >>> ThresholdedSilu(0.25)(torch.tensor([-1.0, -0.5, 0.4, 1.0]))
        tensor([-0.2689, 0.0000, 0.0000, 0.7311])
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        if not 0.0 <= threshold < float("inf"):
            raise ValueError(f"threshold of SiLU: expected a finite number >= 0, got {threshold}")
        self.threshold = float(torch.tensor(threshold, dtype=torch.float32))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the activation of pre-activation ``z``."""
        activation = nn.functional.silu(z)
        return torch.where(activation.abs() <= self.threshold, 0.0, activation)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this module."""
        return f"threshold={self.threshold}"


def silu_ffns(model: nn.Module) -> list[Ffn]:
    """Return the FFNs of ``model``, all of which are gated by SiLU.

    Raises:
        TrainingError: there are no FFNs, or one has another activation or no separate gate.
    """
    ffns = find_ffns(model)
    z = torch.linspace(-8.0, 8.0, 33)
    for ffn in ffns:
        if ffn.gate is None or ffn.is_merged:
            kind = "no gate" if ffn.gate is None else "gate and up in one matrix"
            raise TrainingError(
                f"approximation: {ffn.name}: expected gate_proj and up_proj, got {kind}",
                hint="omit --approximate: it supports SwiGLU FFNs only",
            )
        activation = ffn.activation(z)
        if not torch.allclose(activation, nn.functional.silu(z), rtol=1e-5, atol=1e-6):
            raise TrainingError(
                f"approximation: {ffn.name}: expected SiLU, got {type(ffn.activation).__name__}",
                hint="omit --approximate: ReLU models are sparse already",
            )
    return ffns


@torch.no_grad()
def silu_thresholds(
    model: nn.Module,
    ffns: Sequence[Ffn],
    rows: Sequence[torch.Tensor],
    keep: float,
    progress: ProgressCallback = no_progress,
) -> list[float]:
    """Return, per FFN, the threshold exceeded by the fraction ``keep`` of its activations' magnitudes.

    Magnitudes of all neurons and tokens are counted in bins 0.5% wide, so memory does not grow with the text. All FFNs
    are measured in one pass over the dense model.

    Args:
        model: with SiLU in ``ffns``; not changed.
        ffns: from `silu_ffns`.
        rows: calibration text, token ids [sequence] each.
        keep: fraction of neurons that stay active, in (0, 1).
        progress: called before each row.

    Raises:
        TrainingError: an activation is not finite.
    """
    bins = _OCTAVES * _BINS_PER_OCTAVE
    counts = [torch.zeros(bins, dtype=torch.int64) for _ in ffns]

    def count(index: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            size = nn.functional.silu(output.float()).abs().flatten()
            if not torch.isfinite(size).all():
                raise TrainingError(
                    f"approximation: {ffns[index].name}: an activation is not finite", hint="check the weights"
                )
            place = ((size.log2() - _LOWEST) * _BINS_PER_OCTAVE).floor().clamp(0, bins - 1)
            counts[index] += torch.bincount(place.long(), minlength=bins)

        return hook

    gates = [ffn.gate for ffn in ffns]
    handles = [gate.register_forward_hook(count(i)) for i, gate in enumerate(gates) if gate is not None]
    try:
        for done, row in enumerate(rows):
            progress("calibrate", done, len(rows))
            model(input_ids=row[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [_quantile(histogram, 1.0 - keep) for histogram in counts]


def apply_thresholded_silu(ffns: Sequence[Ffn], thresholds: Sequence[float]) -> None:
    """Give each FFN a thresholded SiLU with its own threshold, in order.

    Raises:
        ValueError: the numbers of thresholds and FFNs differ, or a threshold is negative or not finite.
    """
    for ffn, threshold in zip(ffns, thresholds, strict=True):
        setattr(ffn.parent, ffn.activation_name, ThresholdedSilu(threshold))


def _quantile(counts: torch.Tensor, share: float) -> float:
    """Return the magnitude below which ``share`` of the counts lie, interpolating linearly within a bin."""
    total = counts.double().cumsum(0)
    wanted = share * float(total[-1])
    place = int((total < wanted).sum().clamp(max=len(counts) - 1))
    before = float(total[place - 1]) if place else 0.0
    inside = (wanted - before) / max(float(counts[place]), 1.0)
    low, high = (2.0 ** ((place + i) / _BINS_PER_OCTAVE + _LOWEST) for i in (0, 1))
    return float(torch.tensor(low + inside * (high - low), dtype=torch.float32))
