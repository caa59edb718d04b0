"""The progressive schedule of the L1 coefficient, lambda."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["check_stages", "l1_coefficient", "stage_at"]

Stages = Sequence[tuple[float, int]]


def l1_coefficient(step: int, stages: Stages) -> float:
    """Return the L1 coefficient (lambda) of the progressive schedule at ``step``.

    Stage 0 (usually lambda 0: substitution only) and stage 1 (warm-up) hold their value. From stage 2
    on, each stage moves from the previous value to its own along half a sine period, with zero slope at
    both ends: ``eta = (1 + sin(-pi/2 + pi * u)) / 2``, where ``u`` runs from 0 to 1 over the stage.

    Args:
        step: optimizer step, counted from 1.
        stages: ``(lambda, last_step)`` pairs, stage 0 first; ``last_step`` strictly increasing, counted
            from the start of training. Lambda is dimensionless.

    Returns:
        The coefficient that multiplies the summed L1 norm of the FFN activations; the last stage's
        value once training has passed it.

    Raises:
        ValueError: ``step`` is below 1, ``stages`` is empty, ``last_step`` does not increase, or a
            lambda is negative or not finite.

    Source:
        Song et al., "ProSparse", COLING 2025, appendix B, Algorithm 1, and Tables 6 and 7, whose
        accumulated steps count stage 0 (arXiv:2402.13516).

    Example:
        >>> l1_coefficient(15, [(0.0, 5), (1.0, 10), (3.0, 20)])
        2.0
    """
    index = stage_at(step, stages)
    peak, last = stages[index]
    if index <= 1 or step >= last:
        return peak
    before, first = stages[index - 1]
    progress = (step - first) / (last - first)
    return before + 0.5 * (math.sin(-0.5 * math.pi + math.pi * progress) + 1.0) * (peak - before)


def stage_at(step: int, stages: Stages) -> int:
    """Return the index of the stage of ``step`` (counted from 1); the last stage beyond the end.

    Raises:
        ValueError: as `l1_coefficient`.
    """
    check_stages(stages)
    if step < 1:
        raise ValueError(f"step: expected 1 or more, got {step}")
    return min(bisect_left([last for _, last in stages], step), len(stages) - 1)


def check_stages(stages: Stages) -> None:
    """Raise ValueError unless ``stages`` is a valid schedule; see `l1_coefficient`."""
    if not stages:
        raise ValueError("stages: expected at least one")
    for index, (peak, last) in enumerate(stages):
        if not 0.0 <= peak < math.inf:
            raise ValueError(f"stage {index}: lambda: expected a finite number >= 0, got {peak}")
        previous = stages[index - 1][1] if index else 0
        if last <= previous:
            raise ValueError(
                f"stage {index}: last_step: expected more than {previous}, got {last} (the first stage is 0)"
            )
