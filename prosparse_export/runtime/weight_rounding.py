"""Quantize weights with the operator library: the same bits as NumPy, in a fraction of the time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graph_passes import FormatSpec, Rounding, search_factors
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import library_path
from prosparse_export.runtime.threads import default_threads

__all__ = ["LibraryRounding", "library_rounding"]

_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # TensorProto.DataType


class _Weights(ctypes.Structure):  # SourceWeights in native/src/round_weights.h
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("low", ctypes.c_int32),
        ("high", ctypes.c_int32),
        ("levels", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
        ("cols", ctypes.c_size_t),
        ("row_stride", ctypes.c_ssize_t),
        ("col_stride", ctypes.c_ssize_t),
    )


class _Search(ctypes.Structure):  # ScaleSearch
    _fields_ = (("factors", ctypes.c_void_p), ("count", ctypes.c_size_t), ("importance", ctypes.c_void_p))


class _Rounded(ctypes.Structure):  # RoundedWeights
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bytes", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("row_stride", ctypes.c_ssize_t),
        ("col_stride", ctypes.c_ssize_t),
    )


class LibraryRounding:
    """`Rounding` by the functions of an operator library.

    Args:
        library: exports prosparse_search_scales_2 and prosparse_round_weights_2.
        threads: threads to use.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._search: Callable[..., int] = _function(library.prosparse_search_scales_2)
        self._round: Callable[..., int] = _function(library.prosparse_round_weights_2)
        self._threads = threads

    def scales(
        self, weight: NDArray[Any], spec: FormatSpec, importance: NDArray[np.float32] | None
    ) -> NDArray[np.float16] | None:
        """See `Rounding`."""
        factors = np.array(search_factors(spec, weighted=importance is not None), np.float32)
        per_column = None if importance is None else np.ascontiguousarray(importance, np.float32)
        scales = np.empty((len(weight), spec.groups(weight.shape[1])), np.float16)
        search = _Search(_address(factors), len(factors), _address(per_column))
        source = _source(weight, spec)
        if source is None or self._search(ctypes.byref(source), ctypes.byref(search), _address(scales), self._threads):
            return None
        return scales

    def integers(
        self, weight: NDArray[Any], spec: FormatSpec, scales: NDArray[np.float16]
    ) -> NDArray[np.int8 | np.uint8] | None:
        """See `Rounding`."""
        rows, cols = weight.shape
        integers: NDArray[np.int8 | np.uint8] = np.empty((rows, spec.stored_columns(cols)), spec.dtype)
        packed, bytes_ = (integers, None) if spec.bits == 4 else (None, integers)
        rounded = _Rounded(_address(packed), _address(bytes_), None, 0, 0)
        return integers if self._rounds(weight, spec, scales, rounded) else None

    def values(
        self,
        weight: NDArray[Any],
        spec: FormatSpec,
        scales: NDArray[np.float16],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32] | None:
        """See `Rounding`."""
        values = np.empty_like(weight, np.float32, order="K") if out is None else out
        strides = (stride // values.itemsize for stride in values.strides)
        rounded = _Rounded(None, None, _address(values), *strides)
        return values if self._rounds(weight, spec, scales, rounded) else None

    def _rounds(self, weight: NDArray[Any], spec: FormatSpec, scales: NDArray[np.float16], rounded: _Rounded) -> bool:
        kept = np.ascontiguousarray(scales, np.float16)
        source = _source(weight, spec)
        if source is None or kept.shape != (len(weight), spec.groups(weight.shape[1])):
            return False
        return not self._round(ctypes.byref(source), _address(kept), ctypes.byref(rounded), self._threads)


def _function(function: Any) -> Any:
    """Declare the arguments: three pointers and the number of threads. The result is 0 if the work was done."""
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function


def _source(weight: NDArray[Any], spec: FormatSpec) -> _Weights | None:
    """Return the description of ``weight``, which must outlive it; None if its type or layout is another."""
    code = _TYPES.get(weight.dtype.name)
    strides = [stride // weight.itemsize for stride in weight.strides]
    if code is None or spec.levels is None or any(stride % weight.itemsize for stride in weight.strides):
        return None
    if not weight.dtype.isnative or not weight.flags.aligned:
        return None
    return _Weights(weight.ctypes.data, code, *spec.levels, _levels(spec.table), *weight.shape, *strides)


@cache
def _levels(table: tuple[int, ...] | None) -> Any:
    """Return a table as int32 in memory that stays."""
    return None if table is None else ctypes.cast((ctypes.c_int32 * len(table))(*table), ctypes.c_void_p)


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


@cache
def library_rounding() -> Rounding | None:
    """Return the installed operator library's implementation; None if there is none, and NumPy does the work."""
    try:
        return LibraryRounding(ctypes.CDLL(str(library_path())), default_threads())
    except (ProSparseError, OSError, AttributeError):
        return None
