"""The tensors that store a matrix in a format, computed while they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, Format, FormatSpec
from graph_passes.weights.group_scales import WeightRangeError
from graph_passes.weights.quantization import Rounding, quantize, scales_of, unpack

__all__ = ["repacked_tensors", "stored_tensors"]

Array = NDArray[np.generic]
T = TypeVar("T")


def stored_tensors(
    read: Callable[[], NDArray[np.float32]],
    shape: tuple[int, int],
    weights: Format,
    name: str,
    importance: NDArray[np.float32] | None = None,
    rounding: Rounding | None = None,
) -> list[ir.LazyTensor]:
    """Return the tensors that store a matrix: the weights and, for integer formats, the scales.

    Each is computed when it is written, and not kept.

    Args:
        read: returns the matrix, ``shape``, any float dtype.
        shape: rows and columns.
        weights: the format.
        name: name of the weights; the scales are ``name`` + "_scale".
        importance: as in `quantize`.
        rounding: as in `quantize`.
    """
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        return [_lazy(lambda: _cast(read(), spec, name), spec.onnx_type, shape, name)]
    kept: list[NDArray[np.float16]] = []  # computed with the integers, and mostly written next

    def integers() -> Array:
        result, scales = _naming(name, lambda: quantize(read(), weights, importance, rounding=rounding))
        kept[:] = [scales]
        return result

    def scales() -> Array:
        return kept.pop() if kept else _naming(name, lambda: scales_of(read(), weights, importance, rounding))

    return _integers_and_scales(integers, scales, shape, spec, name)


def repacked_tensors(
    packed: Callable[[], tuple[NDArray[np.uint8], NDArray[np.floating]]],
    shape: tuple[int, int],
    weights: Format,
    name: str,
) -> list[ir.LazyTensor]:
    """Return the tensors that store 4-bit values in an integer format without rounding them; scales become float16.

    Args:
        packed: returns the values, two per byte as in ``weights``, or as in i4 if that is wider, and their scales.
        shape: rows and columns of the matrix.
        weights: an integer format.
        name: as in `stored_tensors`.
    """
    spec = FORMAT_SPECS[weights]

    def integers() -> Array:
        values = packed()[0]
        return np.ascontiguousarray(values) if spec.bits == 4 else unpack(values, "i4").astype(spec.dtype)

    return _integers_and_scales(integers, lambda: packed()[1].astype(np.float16), shape, spec, name)


def _integers_and_scales(
    integers: Callable[[], Array], scales: Callable[[], Array], shape: tuple[int, int], spec: FormatSpec, name: str
) -> list[ir.LazyTensor]:
    rows, cols = shape
    return [
        _lazy(integers, spec.onnx_type, (rows, spec.stored_columns(cols)), name),
        _lazy(scales, ir.DataType.FLOAT16, (rows, spec.groups(cols)), f"{name}_scale"),
    ]


def _lazy(compute: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, int], name: str) -> ir.LazyTensor:
    def tensor() -> ir.TensorProtocol:
        return ir.tensor(compute(), dtype=dtype, name=name)

    return ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)


def _cast(source: Array, spec: FormatSpec, name: str) -> Array:
    if source.dtype == spec.dtype:
        return np.ascontiguousarray(source)
    with np.errstate(over="ignore"):  # reported below
        result = source.astype(spec.dtype)
    if not np.isfinite(result).all() and np.isfinite(source).all():
        raise WeightRangeError(f"{name}: weights reach {np.abs(source).max():g}, too large for {spec.name}")
    return result


def _naming(name: str, compute: Callable[[], T]) -> T:
    try:
        return compute()
    except WeightRangeError as error:
        raise WeightRangeError(f"{name}: {error.detail}", error.hint) from error
