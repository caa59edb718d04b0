"""Weights in the operators' storage formats: canonical, neuron-major, free of any instruction set.

Float formats are a cast. i8 and i4 are symmetric with one float16 scale per row and block of 32
columns: ``weight = scale * integer``, integers in [-127, 127] for i8 and [-8, 7] for i4. The scale maps the
weight of largest magnitude to 127 or -8 (so an i4 scale may be negative), and integers are rounded to the
nearest, ties to even, with the scale as float16 has it. docs/reference/operators.md states the layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.custom_ops import QUANT_BLOCK, Format
from prosparse_export.errors import ProSparseError

__all__ = ["WeightRangeError", "dequantize", "quantize", "rounded", "store"]

_ROWS = 64  # rows at a time: what is at work stays in a core's cache
_FLOATS = {
    "f32": (ir.DataType.FLOAT, np.dtype(np.float32)),
    "f16": (ir.DataType.FLOAT16, np.dtype(np.float16)),
    "bf16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


class WeightRangeError(ProSparseError):
    """A weight is too large for the format, or not a number."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"weights: {detail}", hint="choose another --weights: bf16 and f32 hold any")
        self.detail = detail


def quantize(weight: NDArray[np.float32], weights: Format) -> tuple[NDArray[np.int8 | np.uint8], NDArray[np.float16]]:
    """Return integers and scales of ``weight``.

    Args:
        weight: ``[rows, cols]``, any float dtype.
        weights: ``i8`` or ``i4``.

    Returns:
        i8: int8 ``[rows, cols]``; i4: uint8 ``[rows, 16 * blocks]``, two columns per byte, the even one low, each
        plus 8; and float16 ``[rows, blocks]``, blocks = ceil(cols / 32).

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    rows, cols = weight.shape
    blocks = -(-cols // QUANT_BLOCK)
    integers: NDArray[np.int8 | np.uint8]
    integers = np.empty((rows, cols), np.int8) if weights == "i8" else np.empty((rows, blocks * 16), np.uint8)
    scales = np.empty((rows, blocks), np.float16)

    def part(rows: slice) -> None:
        grouped = _grouped(weight[rows])
        scales[rows] = _scales(grouped, weights)
        _to_integers(grouped, scales[rows], weights)
        if weights == "i8":
            integers[rows] = grouped.reshape(len(grouped), -1)[:, :cols]
        else:
            grouped += 8
            unsigned = grouped.reshape(len(grouped), -1).astype(np.uint8)
            integers[rows] = unsigned[:, ::2] | unsigned[:, 1::2] << 4

    _in_parts(rows, part)
    return integers, scales


def rounded(weight: NDArray[np.float32], weights: Format) -> NDArray[np.float32]:
    """Return ``weight`` as i8 or i4 has it: what `dequantize` makes of `quantize`'s result, without packing it."""
    result = np.empty(weight.shape, np.float32)

    def part(rows: slice) -> None:
        grouped = _grouped(weight[rows])
        scales = _scales(grouped, weights)
        _to_integers(grouped, scales, weights)
        grouped *= scales.astype(np.float32)[..., None]
        result[rows] = grouped.reshape(len(grouped), -1)[:, : weight.shape[1]]

    _in_parts(len(weight), part)
    return result


def block_scales(weight: NDArray[np.float32], weights: Format) -> NDArray[np.float16]:
    """Return the scales alone that `quantize` gives."""
    scales = np.empty((len(weight), -(-weight.shape[1] // QUANT_BLOCK)), np.float16)

    def part(rows: slice) -> None:
        scales[rows] = _scales(_grouped(weight[rows]), weights)

    _in_parts(len(weight), part)
    return scales


def _in_parts(rows: int, part: Callable[[slice], None]) -> None:
    """Call ``part`` for all rows, some at a time, on every core: numpy holds no lock while it computes."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(part, [slice(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS)]):
            pass


def _grouped(part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a float32 copy of some rows as ``[rows, blocks, 32]``, zeros behind the last column."""
    rows, cols = part.shape
    blocks = -(-cols // QUANT_BLOCK)
    padded: NDArray[np.float32] = np.zeros((rows, blocks * QUANT_BLOCK), np.float32)
    padded[:, :cols] = part
    return padded.reshape(rows, blocks, QUANT_BLOCK)


def _to_integers(grouped: NDArray[np.float32], scales: NDArray[np.float16], weights: Format) -> None:
    """Divide by the scales, in place, and round."""
    scale = scales.astype(np.float32)[..., None]
    scale[scale == 0] = np.inf  # all weights are 0, or nearly: so are the integers
    np.divide(grouped, scale, out=grouped)
    np.rint(grouped, out=grouped)
    np.clip(grouped, *((-127, 127) if weights == "i8" else (-8, 7)), out=grouped)


def _scales(grouped: NDArray[np.float32], weights: Format) -> NDArray[np.float16]:
    most, least = grouped.max(-1), grouped.min(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # reported here
        largest = np.where(most >= -least, most, least)
        scales: NDArray[np.float16] = (np.abs(largest) / 127 if weights == "i8" else largest / -8).astype(np.float16)
    if not np.isfinite(scales).all():
        raise WeightRangeError(f"weights reach {np.abs(grouped).max():g}, too large for {weights} with float16 scales")
    return scales


def dequantize(integers: NDArray[np.int8 | np.uint8], scales: NDArray[np.float16], cols: int) -> NDArray[np.float32]:
    """Return the float32 matrix ``[rows, cols]`` that ``quantize``'s result stands for, exactly."""
    values: NDArray[np.float32]
    if integers.dtype == np.uint8:
        pairs = np.stack([integers & 15, integers >> 4], -1)
        values = pairs.reshape(len(integers), -1)[:, :cols].astype(np.float32) - 8
    else:
        values = integers.astype(np.float32)
    return values * np.repeat(scales.astype(np.float32), QUANT_BLOCK, axis=1)[:, :cols]


def store(
    read: Callable[[], NDArray[np.float32]], shape: tuple[int, int], weights: Format, name: str
) -> list[ir.LazyTensor]:
    """Return the tensors that store a matrix: the weights and, for i8 and i4, the scales.

    They are computed when they are written, one at a time, and not kept.

    Args:
        read: returns the matrix, ``shape``, any float dtype.
        shape: rows and columns.
        weights: the format.
        name: name of the weights; the scales' is ``name`` + "_scale".
    """
    rows, cols = shape
    if weights in _FLOATS:
        dtype, target = _FLOATS[weights]

        def cast() -> ir.TensorProtocol:
            source = read()
            if source.dtype == target:
                return ir.tensor(np.ascontiguousarray(source), dtype=dtype, name=name)
            with np.errstate(over="ignore"):  # reported here
                result = source.astype(target)
            if not np.isfinite(result).all() and np.isfinite(source).all():
                raise WeightRangeError(f"{name}: weights reach {np.abs(source).max():g}, too large for {weights}")
            return ir.tensor(result, dtype=dtype, name=name)

        return [ir.LazyTensor(cast, dtype=dtype, shape=ir.Shape(shape), name=name)]
    blocks = -(-cols // QUANT_BLOCK)
    stored = (ir.DataType.INT8, cols) if weights == "i8" else (ir.DataType.UINT8, blocks * QUANT_BLOCK // 2)

    def named(compute: Callable[[], NDArray[np.generic]], tensor_name: str) -> Callable[[], ir.TensorProtocol]:
        def tensor() -> ir.TensorProtocol:
            try:
                return ir.tensor(compute(), name=tensor_name)
            except WeightRangeError as error:
                raise WeightRangeError(f"{name}: {error.detail}") from error

        return tensor

    kept: list[NDArray[np.float16]] = []  # from integers to scales, which are mostly written next

    def integers() -> NDArray[np.generic]:
        result, scales = quantize(read(), weights)
        kept[:] = [scales]
        return result

    def scales() -> NDArray[np.generic]:
        return kept.pop() if kept else block_scales(read(), weights)

    return [
        ir.LazyTensor(named(integers, name), dtype=stored[0], shape=ir.Shape((rows, stored[1])), name=name),
        ir.LazyTensor(
            named(scales, f"{name}_scale"),
            dtype=ir.DataType.FLOAT16,
            shape=ir.Shape((rows, blocks)),
            name=f"{name}_scale",
        ),
    ]
