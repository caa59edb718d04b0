"""Powers of two that even out the outputs of a down_proj before it is rounded.

Groups of 32 in a down_proj run along its outputs (docs/reference/operators.md), so one output with large weights leaves
its neighbors few integers. Dividing each output's weights by a power of two is exact, and so is multiplying the output
by it after the operator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["are_output_powers", "divided", "output_powers"]

_OUTPUTS = 64  # at a time: their float64 copies stay small
_LARGEST = 30  # exponent: powers times weights and float16 scales stay in range


def output_powers(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the power of two nearest to each output's magnitude, relative to the median output.

    The magnitude is the fourth root of the mean fourth power: between the root mean square and the largest weight.
    docs/decisions/quantization.md compares others.

    Args:
        weight: ``[d_ff, d_model]``, any float dtype, any strides.

    Returns:
        float32 ``[d_model]``; 1 for outputs that are all zeros or not finite.
    """
    d_model = weight.shape[1]
    magnitudes = np.empty(d_model, np.float64)
    for first in range(0, d_model, _OUTPUTS):
        part = weight[:, first : first + _OUTPUTS].astype(np.float32)
        with np.errstate(invalid="ignore"):
            magnitudes[first : first + _OUTPUTS] = np.square(np.square(part, dtype=np.float64)).mean(0) ** 0.25
    usable = np.isfinite(magnitudes) & (magnitudes > 0)
    exponents = np.zeros(d_model)
    if usable.any():
        exponents[usable] = np.log2(magnitudes[usable] / np.median(magnitudes[usable]))
    powers: NDArray[np.float32] = np.exp2(np.clip(np.rint(exponents), -_LARGEST, _LARGEST)).astype(np.float32)
    return powers


def divided(weight: NDArray[np.float32], powers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``weight``, ``[d_ff, d_model]``, any float dtype, over the powers of its outputs, as float32."""
    result: NDArray[np.float32] = np.divide(weight, powers, dtype=np.float32)
    return result


def are_output_powers(powers: NDArray[np.generic], weight: NDArray[np.float32]) -> bool:
    """Return whether `output_powers` may have chosen ``powers``: on another processor, sums may end at the next one."""
    own = output_powers(weight)
    if powers.dtype != np.float32 or powers.shape != own.shape:
        return False
    given = powers.astype(np.float64)
    if not (np.isfinite(given) & (given > 0)).all():
        return False
    steps = np.log2(given)
    return bool((steps == np.rint(steps)).all() and (np.abs(steps - np.log2(own)) <= 1).all())
