"""Round matrices to the integer formats, and back: canonical, neuron-major, independent of any instruction set.

Quantization is symmetric with one float16 scale per row and group of 32 columns: ``weight = scale * integer``, integers
in [-127, 127] for i8, [-8, 7] for i4, and 16 unequally spaced ones for nl4. group_scales.py chooses the scales, which
may be negative for 4 bits. Integers are the nearest ones, after rounding the scale to float16.
docs/reference/operators.md states the layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, QUANT_GROUP, Format, FormatSpec
from graph_passes.weights.group_scales import are_plausible, group_scales, round_to_integers

__all__ = [
    "Rounding",
    "dequantize",
    "pack",
    "plausible_groups",
    "plausible_integers",
    "plausible_scales",
    "quantize",
    "rounded",
    "scales_of",
    "unpack",
]

_MOST_STEPS = 4  # between a nearest integer and a compensated one
_WEIGHTS = 1 << 16  # rounded at a time, so that they stay in a core's cache


class Rounding(Protocol):
    """Another implementation of what this module computes, with the same bits.

    Each method returns None for what it leaves to this module: weights or scales that are not finite or out of range,
    and types that it does not know. ``weight`` is ``[rows, cols]``, any float dtype, any strides.
    """

    def scales(
        self, weight: NDArray[Any], spec: FormatSpec, importance: NDArray[np.float32] | None
    ) -> NDArray[np.float16] | None:
        """Return what `scales_of` returns."""

    def integers(
        self, weight: NDArray[Any], spec: FormatSpec, scales: NDArray[np.float16]
    ) -> NDArray[np.int8 | np.uint8] | None:
        """Return the integers of `quantize` for these scales."""

    def values(
        self,
        weight: NDArray[Any],
        spec: FormatSpec,
        scales: NDArray[np.float16],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """Return what `rounded` returns for these scales, in ``out`` if it is given."""


def quantize(
    weight: NDArray[np.float32],
    weights: Format,
    importance: NDArray[np.float32] | None = None,
    scales: NDArray[np.float16] | None = None,
    rounding: Rounding | None = None,
) -> tuple[NDArray[np.int8 | np.uint8], NDArray[np.float16]]:
    """Return integers and scales of ``weight``.

    Args:
        weight: ``[rows, cols]``, any float dtype.
        weights: an integer format.
        importance: ``[cols]``, the weight of each column's squared error when scales are chosen, such as the mean
            square of its input; None for 1.
        scales: ``[rows, groups]``: round with these instead of choosing.
        rounding: computes the same, faster.

    Returns:
        Integers and float16 scales ``[rows, groups]``, groups = ceil(cols / 32). i8: int8 ``[rows, cols]``. i4, nl4:
        uint8 ``[rows, 16 * groups]``, two columns per byte as in `pack`.

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    spec = FORMAT_SPECS[weights]
    rows, cols = weight.shape
    if rounding is not None:
        chosen = rounding.scales(weight, spec, importance) if scales is None else scales
        found = None if chosen is None else rounding.integers(weight, spec, chosen)
        if chosen is not None and found is not None:
            return found, chosen
    integers: NDArray[np.int8 | np.uint8] = np.empty((rows, spec.stored_columns(cols)), spec.dtype)
    used = np.empty((rows, spec.groups(cols)), np.float16)

    def part(rows: slice) -> None:
        values, used[rows] = _rounded_part(weight[rows], spec, importance, None if scales is None else scales[rows])
        if spec.bits == 4:
            integers[rows] = pack(values.astype(np.int8), weights)
        else:
            integers[rows] = values[:, :cols]

    _in_parts(weight.shape, part)
    return integers, used


def dequantize(
    integers: NDArray[np.int8 | np.uint8], scales: NDArray[np.float16], cols: int, weights: Format
) -> NDArray[np.float32]:
    """Return the float32 matrix ``[rows, cols]`` that ``quantize``'s result in this format stands for, exactly."""
    values: NDArray[np.float32]
    if FORMAT_SPECS[weights].bits == 4:
        values = unpack(integers.astype(np.uint8, copy=False), weights)[:, :cols].astype(np.float32)
    else:
        values = integers.astype(np.float32)
    return values * _each_column(scales, cols)


def pack(values: NDArray[np.int8], weights: Format) -> NDArray[np.uint8]:
    """Return a 4-bit format's integers ``[rows, cols]``, cols even, as two per byte, the even column in the low half.

    i4 stores an integer plus 8, nl4 its place among the 16.
    """
    table = FORMAT_SPECS[weights].table
    if table is None:
        fields = (values + np.int8(8)).view(np.uint8)
    else:
        fields = np.searchsorted(np.array(table, np.int8), values).astype(np.uint8)
    packed: NDArray[np.uint8] = fields[:, ::2] | fields[:, 1::2] << 4
    return packed


def unpack(packed: NDArray[np.uint8], weights: Format) -> NDArray[np.int8]:
    """Return the integers of ``packed`` as int8: the inverse of `pack`."""
    fields = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    values: NDArray[np.int8] = np.array(FORMAT_SPECS[weights].table or range(-8, 8), np.int8)[fields]
    return values


def rounded(
    weight: NDArray[np.float32],
    weights: Format,
    scales: NDArray[np.float16] | None = None,
    rounding: Rounding | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return ``weight`` rounded to a format: for integers, ``dequantize(*quantize(...))`` without packing.

    Args:
        weight: ``[rows, cols]``, any float dtype.
        weights: the format.
        scales: ``[rows, groups]``, for integer formats; None to choose them.
        rounding: computes the same, faster.
        out: memory for the result, of an integer format.
    """
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        with np.errstate(over="ignore"):  # becomes infinite
            return weight.astype(spec.dtype).astype(np.float32)
    if rounding is not None:
        chosen = rounding.scales(weight, spec, None) if scales is None else scales
        found = None if chosen is None else rounding.values(weight, spec, chosen, out)
        if found is not None:
            return found
    result = np.empty(weight.shape, np.float32) if out is None else out
    cols = weight.shape[1]

    def part(rows: slice) -> None:
        values, used = _rounded_part(weight[rows], spec, None, None if scales is None else scales[rows])
        np.multiply(values[:, :cols], _each_column(used, cols), out=result[rows])

    _in_parts(weight.shape, part)
    return result


def scales_of(
    weight: NDArray[np.float32],
    weights: Format,
    importance: NDArray[np.float32] | None = None,
    rounding: Rounding | None = None,
) -> NDArray[np.float16]:
    """Return the scales that `quantize` returns, without the integers."""
    spec = FORMAT_SPECS[weights]
    found = None if rounding is None else rounding.scales(weight, spec, importance)
    if found is not None:
        return found
    scales = np.empty((len(weight), spec.groups(weight.shape[1])), np.float16)

    def part(rows: slice) -> None:
        chosen = group_scales(_grouped(weight[rows], spec), spec, _importance(importance, spec, weight[rows].shape))
        scales[rows] = chosen.reshape(scales[rows].shape)

    _in_parts(weight.shape, part)
    return scales


def plausible_scales(weight: NDArray[np.float32], weights: Format, scales: NDArray[np.float16]) -> bool:
    """Return whether `quantize` may have chosen ``scales`` for ``weight`` with some importance.

    Args:
        weight: ``[rows, cols]``.
        weights: an integer format.
        scales: ``[rows, groups]``.
    """
    if scales.shape != (len(weight), FORMAT_SPECS[weights].groups(weight.shape[1])):
        return False
    return bool(plausible_groups(weight, weights, scales).all())


def plausible_groups(weight: NDArray[np.float32], weights: Format, scales: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return which of ``scales`` `quantize` may have chosen, ``[rows, groups]``; see `plausible_scales`."""
    spec = FORMAT_SPECS[weights]
    found = np.empty(scales.shape, np.bool_)

    def part(rows: slice) -> None:
        plausible = are_plausible(_grouped(weight[rows], spec), scales[rows].reshape(-1), spec)
        found[rows] = plausible.reshape(found[rows].shape)

    _in_parts(weight.shape, part)
    return found


def plausible_integers(
    weight: NDArray[np.float32],
    integers: NDArray[np.uint8],
    scales: NDArray[np.float16],
    weights: Format,
    rounding: Rounding | None = None,
) -> bool:
    """Return whether ``integers`` may be ``weight`` rounded with compensation to a 4-bit format.

    A search may have chosen the scales for these weights. Compensation takes at most the fourth integer from the
    nearest one.

    Args:
        weight: ``[rows, cols]``.
        integers: as `quantize` returns them.
        scales: ``[rows, groups]``.
        weights: i4 or nl4.
        rounding: as in `quantize`.
    """
    spec = FORMAT_SPECS[weights]
    rows, cols = weight.shape
    if integers.shape != (rows, spec.stored_columns(cols)) or not plausible_scales(weight, weights, scales):
        return False
    nearest = quantize(weight, weights, scales=scales, rounding=rounding)[0].view(np.uint8)
    moved = unpack(nearest, "i4") - unpack(integers, "i4")  # of nl4: the difference of places
    return bool((np.abs(moved) <= _MOST_STEPS).all())


def _in_parts(shape: tuple[int, ...], part: Callable[[slice], None]) -> None:
    """Call ``part`` for all rows, some at a time, on every core: NumPy releases the GIL while it computes."""
    rows, cols = shape
    step = max(1, _WEIGHTS // max(cols, 1))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(part, [slice(first, min(first + step, rows)) for first in range(0, rows, step)]):
            pass


def _rounded_part(
    part: NDArray[np.float32],
    spec: FormatSpec,
    importance: NDArray[np.float32] | None,
    scales: NDArray[np.float16] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Return the integers of some rows, ``[rows, 32 * groups]``, as floats, and their scales, ``[rows, groups]``."""
    grouped = _grouped(part, spec)
    if scales is None:
        scales = group_scales(grouped, spec, _importance(importance, spec, part.shape)).reshape(len(part), -1)
    round_to_integers(grouped, scales.reshape(-1), spec, grouped)
    return grouped.T.reshape(len(part), -1), scales


def _grouped(part: NDArray[np.float32], spec: FormatSpec) -> NDArray[np.float32]:
    """Return a float32 copy of some rows as ``[32, rows * groups]``, padded with zeros: a group is a column."""
    rows, cols = part.shape
    padded: NDArray[np.float32] = np.zeros((rows, spec.groups(cols) * spec.group), np.float32)
    padded[:, :cols] = part
    return np.ascontiguousarray(padded.reshape(-1, spec.group).T)


def _importance(
    importance: NDArray[np.float32] | None, spec: FormatSpec, shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    """Return ``importance`` in the layout of `_grouped`."""
    if importance is None:
        return None
    return np.tile(_grouped(importance[None], spec), shape[0])


def _each_column(scales: NDArray[np.float16], cols: int) -> NDArray[np.float32]:
    """Return the scale of each weight, ``[rows, cols]``."""
    return np.repeat(scales.astype(np.float32), QUANT_GROUP, axis=1)[:, :cols]
