"""Choose the scale of each quantization group: the one with the smallest squared error among several candidates.

Every operation is elementwise or adds in a fixed order, so that all processors choose the same scales:
``prosparse validate`` computes them again, and native/src/round_weights.inc repeats them, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from graph_passes.formats import Format, FormatSpec
from prosparse_export.errors import ProSparseError

__all__ = ["WeightRangeError", "are_plausible", "group_scales", "round_to_integers", "search_factors"]

Array = NDArray[np.float32]

# Factors of the scale that maps the weight of largest magnitude to the last integer. The ranges of 4 bits are not
# symmetric, so there the sign matters too. Those of i8 and i4 were chosen on SmolLM2 by KL divergence
# (docs/decisions/quantization.md), those of nl4 on normal weights.
_FACTORS: Mapping[Format, tuple[float, ...]] = {
    "i8": (1.0, 0.97),
    "i4": (1.0, 0.85, 0.92, -0.85, -0.92, -1.0, -1.08),
    "nl4": (1.0, 0.87, 0.93, 1.06, -0.87, -0.93, -1.0, -1.06),
}
_MORE_FACTORS: Mapping[Format, tuple[float, ...]] = {  # importance may favor small weights
    "i8": (1.0, 0.97),
    "i4": (1.0, 0.55, 0.65, 0.75, 0.85, 0.92, -0.55, -0.65, -0.75, -0.85, -0.92, -1.0, -1.08),
    "nl4": (1.0, 0.6, 0.7, 0.8, 0.87, 0.93, 1.06, -0.6, -0.7, -0.8, -0.87, -0.93, -1.0, -1.06),
}
_DAMAGED = "the checkpoint is damaged, or its training diverged; use another one"
# Of the scale that maps the largest weight to the last integer: a candidate, refined for one weight rounded to 1.
# nl4: 1.06 * 8 / 5 at most, for one halfway between -11 and -5 that is rounded to -5.
_LEAST, _MOST = 0.25, 1.7
_TINY = np.float32(1e-30)  # a divisor for groups whose integers are all 0


class WeightRangeError(ProSparseError):
    """A weight is too large for the format, or not a number."""

    def __init__(
        self, detail: str, hint: str | None = "choose another --weights; bf16 and f32 have no such limit"
    ) -> None:
        super().__init__(f"weights: {detail}", hint=hint)
        self.detail = detail


def search_factors(spec: FormatSpec, *, weighted: bool) -> tuple[float, ...]:
    """Return the factors that `group_scales` tries, in order; ``weighted``: with importance."""
    return (_MORE_FACTORS if weighted else _FACTORS)[spec.name]


def group_scales(weight: Array, spec: FormatSpec, importance: Array | None = None) -> NDArray[np.float16]:
    """Return the scale of each group, ``[groups]``.

    For each candidate, the weights are rounded to integers q. The best scale for these integers is the least-squares
    solution ``sum(q * w) / sum(q * q)``, which reduces the squared error by ``sum(q * w)^2 / sum(q * q)``; the
    candidate with the largest reduction wins.

    Args:
        weight: ``[32, groups]``: a group is a column.
        spec: an integer format.
        importance: ``[32, groups]``, the weight of each error in the sum, at least 0; None for 1.

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    if weight.shape[1] == 1:  # NumPy adds a single column in another order
        importance = None if importance is None else np.repeat(importance, 2, 1)
        return group_scales(np.repeat(weight, 2, 1), spec, importance)[:1]
    assert spec.levels is not None
    first = _largest_to_last(weight, spec)
    weighted = weight if importance is None else weight * importance
    integers, work = np.empty_like(weight), np.empty_like(weight)
    best, gain = first, np.zeros_like(first)
    for factor in search_factors(spec, weighted=importance is not None):
        np.multiply(weight, _inverse(first * np.float32(factor)), out=integers)
        _nearest(integers, spec)
        along = np.multiply(integers, weighted, out=work).sum(0)
        np.multiply(integers, integers, out=work)
        size = (work if importance is None else np.multiply(work, importance, out=work)).sum(0)
        np.maximum(size, _TINY, out=size)
        scale = along / size
        reduction = scale * along
        better = reduction > gain
        np.copyto(gain, reduction, where=better)
        best = np.where(better, scale, best)
    with np.errstate(over="ignore"):
        scales: NDArray[np.float16] = best.astype(np.float16)
    return np.where(np.isfinite(scales), scales, first.astype(np.float16))


def are_plausible(weight: Array, scales: NDArray[np.float16], spec: FormatSpec) -> NDArray[np.bool_]:
    """Return which of ``scales`` a search may have chosen for ``weight``, whatever the importance of its errors.

    Args:
        weight: ``[32, groups]``.
        scales: ``[groups]``.
        spec: an integer format.
    """
    first = np.abs(_largest_to_last(weight, spec))
    size = np.abs(scales.astype(np.float32))
    slack = first * np.float32(2.0**-10) + np.float32(2.0**-24)  # float16, subnormal too
    found: NDArray[np.bool_] = (size >= _LEAST * first - slack) & (size <= _MOST * first + slack)
    return found


def round_to_integers(weight: Array, scales: NDArray[np.floating], spec: FormatSpec, out: Array) -> None:
    """Write to ``out``, ``[32, groups]``, the integers nearest to ``weight / scales``; 0 where a scale is 0."""
    divisor = scales.astype(np.float32)
    divisor[divisor == 0] = np.inf  # all weights of the group are 0 or nearly 0, and so are the integers
    np.divide(weight, divisor, out=out)
    _nearest(out, spec)
    np.add(out, np.float32(0), out=out)  # integers have no -0


def _nearest(values: Array, spec: FormatSpec) -> None:
    """Replace ``values`` by the nearest integers of a format: ties to even, and in a table to the lower one."""
    assert spec.levels is not None
    if spec.table is None:
        np.clip(values, *spec.levels, out=values)
        np.rint(values, out=values)
        return
    low, high = spec.levels
    np.clip(values, low, high, out=values)
    np.ceil(np.multiply(values, 2, out=values), out=values)  # halfway between two integers is a multiple of 1/2
    np.take(_by_half(spec.table), (values - 2 * low).astype(np.intp), out=values)


@cache
def _by_half(table: tuple[int, ...]) -> Array:
    """Return the nearest of ``table`` for 0, 1/2, 1 ... above its first."""
    wide = np.array(table, np.float32)
    halves = np.arange(2 * table[0], 2 * table[-1] + 1) / 2
    nearest: Array = wide[np.searchsorted((wide[1:] + wide[:-1]) / 2, halves)]
    return nearest


def _inverse(scales: Array) -> Array:
    """Return ``1 / scales``; 0 for scales below float32's normal numbers, which may have no inverse."""
    normal = np.abs(scales) >= np.finfo(np.float32).tiny
    inverse: Array = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=normal)
    return inverse


def _largest_to_last(weight: Array, spec: FormatSpec) -> Array:
    """Return the scales that map each group's weight of largest magnitude to the last integer, as float32."""
    assert spec.levels is not None
    low, high = spec.levels
    most, least = weight.max(0), weight.min(0)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        peak = np.where(most >= -least, most, least)
        scales: Array = peak / np.float32(low) if -low > high else np.abs(peak) / np.float32(high)
        scales += np.float32(0)  # of the two zeros, NumPy's maximum may return either
        finite = np.isfinite(scales.astype(np.float16)).all()
    if not finite:
        if not np.isfinite(weight).all():
            raise WeightRangeError(f"{spec.name}: expected finite weights, got NaN or Inf", hint=_DAMAGED)
        raise WeightRangeError(f"weights reach {np.abs(weight).max():g}, too large for {spec.name} and float16 scales")
    return scales
