"""Round matrices to the integer formats, and back: canonical, neuron-major, independent of any instruction set.

Quantization is symmetric with one float16 scale per row and group of 32 columns: ``weight = scale * integer``, integers
in [-127, 127] for i8 and [-8, 7] for i4. The scale maps the weight of largest magnitude to 127 or -8 (so an i4 scale
may be negative). Integers are rounded to nearest, ties to even, after rounding the scale to float16.
docs/reference/operators.md states the layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, QUANT_GROUP, Format, FormatSpec
from prosparse_export.errors import ProSparseError

__all__ = ["WeightRangeError", "dequantize", "quantize", "rounded", "scales_of", "unpack"]

_ROWS = 64  # rows at a time, so that they stay in a core's cache


class WeightRangeError(ProSparseError):
    """A weight is too large for the format, or not a number."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"weights: {detail}", hint="choose another --weights; bf16 and f32 have no such limit")
        self.detail = detail


def quantize(weight: NDArray[np.float32], weights: Format) -> tuple[NDArray[np.int8 | np.uint8], NDArray[np.float16]]:
    """Return integers and scales of ``weight``.

    Args:
        weight: ``[rows, cols]``, any float dtype.
        weights: an integer format.

    Returns:
        Integers and float16 scales ``[rows, groups]``, groups = ceil(cols / 32). i8: int8 ``[rows, cols]``. i4: uint8
        ``[rows, 16 * groups]``, two columns per byte, the even one in the low half, each plus 8.

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    spec = FORMAT_SPECS[weights]
    rows, cols = weight.shape
    integers: NDArray[np.int8 | np.uint8] = np.empty((rows, spec.stored_columns(cols)), spec.dtype)
    scales = np.empty((rows, spec.groups(cols)), np.float16)

    def part(rows: slice) -> None:
        grouped = _grouped(weight[rows], spec)
        scales[rows] = _scales(grouped, spec)
        _to_integers(grouped, scales[rows], spec)
        values = grouped.reshape(len(grouped), -1)
        if spec.bits == 4:
            values += 8
            unsigned = values.astype(np.uint8)
            integers[rows] = unsigned[:, ::2] | unsigned[:, 1::2] << 4
        else:
            integers[rows] = values[:, :cols]

    _in_parts(rows, part)
    return integers, scales


def dequantize(integers: NDArray[np.int8 | np.uint8], scales: NDArray[np.float16], cols: int) -> NDArray[np.float32]:
    """Return the float32 matrix ``[rows, cols]`` that ``quantize``'s result stands for, exactly."""
    values: NDArray[np.float32]
    if integers.dtype == np.uint8:
        values = unpack(integers.astype(np.uint8, copy=False))[:, :cols].astype(np.float32)
    else:
        values = integers.astype(np.float32)
    return values * np.repeat(scales.astype(np.float32), QUANT_GROUP, axis=1)[:, :cols]


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the 4-bit values of ``packed``, two per byte with the even column low and each plus 8, as int8."""
    pairs = np.stack([packed & 15, packed >> 4], -1)
    values: NDArray[np.int8] = pairs.reshape(len(packed), -1).astype(np.int8) - np.int8(8)
    return values


def rounded(weight: NDArray[np.float32], weights: Format) -> NDArray[np.float32]:
    """Return ``weight`` rounded to a format: for integers, ``dequantize(*quantize(weight))`` without packing."""
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        with np.errstate(over="ignore"):  # becomes infinite
            return weight.astype(spec.dtype).astype(np.float32)
    result = np.empty(weight.shape, np.float32)

    def part(rows: slice) -> None:
        grouped = _grouped(weight[rows], spec)
        scales = _scales(grouped, spec)
        _to_integers(grouped, scales, spec)
        grouped *= scales.astype(np.float32)[..., None]
        result[rows] = grouped.reshape(len(grouped), -1)[:, : weight.shape[1]]

    _in_parts(len(weight), part)
    return result


def scales_of(weight: NDArray[np.float32], weights: Format) -> NDArray[np.float16]:
    """Return the scales that `quantize` returns, without the integers."""
    spec = FORMAT_SPECS[weights]
    scales = np.empty((len(weight), spec.groups(weight.shape[1])), np.float16)

    def part(rows: slice) -> None:
        scales[rows] = _scales(_grouped(weight[rows], spec), spec)

    _in_parts(len(weight), part)
    return scales


def _in_parts(rows: int, part: Callable[[slice], None]) -> None:
    """Call ``part`` for all rows, some at a time, on every core: NumPy releases the GIL while it computes."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(part, [slice(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS)]):
            pass


def _grouped(part: NDArray[np.float32], spec: FormatSpec) -> NDArray[np.float32]:
    """Return a float32 copy of some rows as ``[rows, groups, 32]``, padded with zeros."""
    rows, cols = part.shape
    groups = spec.groups(cols)
    padded: NDArray[np.float32] = np.zeros((rows, groups * spec.group), np.float32)
    padded[:, :cols] = part
    return padded.reshape(rows, groups, spec.group)


def _scales(grouped: NDArray[np.float32], spec: FormatSpec) -> NDArray[np.float16]:
    assert spec.levels is not None
    low, high = spec.levels
    most, least = grouped.max(-1), grouped.min(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        peak = np.where(most >= -least, most, least)
        scales: NDArray[np.float16] = (peak / low if -low > high else np.abs(peak) / high).astype(np.float16)
    if not np.isfinite(scales).all():
        raise WeightRangeError(f"weights reach {np.abs(grouped).max():g}, too large for {spec.name} and float16 scales")
    return scales


def _to_integers(grouped: NDArray[np.float32], scales: NDArray[np.float16], spec: FormatSpec) -> None:
    """Divide by the scales and round, in place."""
    assert spec.levels is not None
    scale = scales.astype(np.float32)[..., None]
    scale[scale == 0] = np.inf  # all weights of the group are 0 or nearly 0, and so are the integers
    np.divide(grouped, scale, out=grouped)
    np.rint(grouped, out=grouped)
    np.clip(grouped, *spec.levels, out=grouped)
