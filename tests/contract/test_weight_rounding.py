"""Scales and integers by the operator library: the bits of NumPy's, whatever the shape, type, layout and threads."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from graph_passes import FORMAT_SPECS, Format, WeightRangeError, quantize, rounded
from graph_passes.weights.quantization import scales_of
from prosparse_export.runtime.operator_library import library_path
from prosparse_export.runtime.weight_rounding import LibraryRounding, library_rounding

INTEGERS: list[Format] = ["i8", "i4", "nl4"]
SHAPES = [(1, 1), (1, 32), (3, 31), (16, 32), (17, 100), (33, 257)]


def library(threads: int) -> LibraryRounding:
    return LibraryRounding(ctypes.CDLL(str(library_path())), threads)


def matrices(rows: int, cols: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Magnitudes from float16's subnormal numbers to the largest scale, groups of 0, ties, and small checkpoints."""
    normal = rng.standard_normal((rows, cols)).astype(np.float32)
    spread = (normal * 10 ** rng.uniform(-7, 3, (rows, 1))).astype(np.float32)
    spread[rng.random((rows, cols)) < 0.2] = 0.0
    spread[::3] *= np.float32(-0.0)
    ties = (rng.integers(-16, 17, (rows, cols)) * np.float32(0.5)).astype(np.float32)
    tiny = (normal * np.float32(1e-40)).astype(np.float32)  # subnormal in float32
    huge = (np.clip(normal, -1, 1) * np.float32(65504 * 7)).astype(np.float32)
    return {"normal": normal, "spread": spread, "ties": ties, "tiny": tiny, "huge": huge}


def layouts(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers in every type and layout that a checkpoint's matrix has here."""
    rows, cols = matrix.shape
    wide = np.zeros((2 * rows, 3 * cols), np.float32)
    wide[::2, ::3] = matrix
    with np.errstate(over="ignore"):
        half = matrix.clip(-65504, 65504).astype(np.float16)
    return {
        "rows": matrix,
        "columns": np.asfortranarray(matrix),
        "strided": wide[::2, ::3],
        "reversed": np.ascontiguousarray(matrix[::-1, ::-1])[::-1, ::-1],
        "float16": half,
        "float16 columns": np.asfortranarray(half),
        "bfloat16": matrix.astype(ml_dtypes.bfloat16),
        "bfloat16 columns": np.asfortranarray(matrix.astype(ml_dtypes.bfloat16)),
    }


def same_bits(actual: np.ndarray | None, expected: np.ndarray, case: str) -> None:
    assert actual is not None, case
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), case
    assert np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes(), case


@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_as_numpy(weights: Format, shape: tuple[int, int]) -> None:
    spec, native = FORMAT_SPECS[weights], library(3)
    rng = np.random.default_rng(shape)
    importance = (10 ** rng.uniform(-3, 3, shape[1])).astype(np.float32)
    importance[rng.random(shape[1]) < 0.1] = 0.0
    for kind, matrix in matrices(*shape, rng).items():
        for layout, weight in layouts(matrix).items():
            for weighted in (None, importance):
                case = f"{kind}, {layout}, {weighted is not None}"
                scales = scales_of(weight, weights, weighted)
                same_bits(native.scales(weight, spec, weighted), scales, case)
            stored, _ = quantize(weight, weights, scales=scales)
            same_bits(native.integers(weight, spec, scales), stored, case)
            same_bits(native.values(weight, spec, scales), rounded(weight, weights, scales), case)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("weights", INTEGERS)
def test_same_bits_with_any_importance_and_scales(weights: Format) -> None:
    """Importance that is not finite, or so large that sums overflow; scales that no search has chosen."""
    spec, native = FORMAT_SPECS[weights], library(2)
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((48, 96)).astype(np.float32)
    for value in (np.nan, np.inf, -1.0, 3e38, 1e-45):
        importance = np.ones(96, np.float32)
        importance[::5] = value
        same_bits(native.scales(weight, spec, importance), scales_of(weight, weights, importance), str(value))
    scales = rng.integers(0, 0x7C00, (48, 3)).astype(np.uint16).view(np.float16) * rng.choice([-1, 1], (48, 3))
    scales = scales.astype(np.float16)
    same_bits(native.integers(weight, spec, scales), quantize(weight, weights, scales=scales)[0], "integers")
    same_bits(native.values(weight, spec, scales), rounded(weight, weights, scales), "values")


@pytest.mark.parametrize("weights", INTEGERS)
def test_same_bits_for_any_threads(weights: Format) -> None:
    weight = np.random.default_rng(2).standard_normal((200, 70)).astype(np.float32)
    expected = quantize(weight, weights)
    for threads in (1, 2, 7, 64):
        for actual, wanted in zip(quantize(weight, weights, rounding=library(threads)), expected, strict=True):
            same_bits(actual, wanted, str(threads))


@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e8])
def test_what_has_no_scale_is_left_to_numpy(weights: Format, bad: float) -> None:
    spec, native = FORMAT_SPECS[weights], library(2)
    weight = np.ones((40, 70), np.float32)
    weight[37, 69] = bad
    assert native.scales(weight, spec, None) is None
    with pytest.raises(WeightRangeError, match="too large" if bad == 1e8 else "expected finite weights"):
        quantize(weight, weights, rounding=native)
    scales = np.ones((40, 3), np.float16)
    if not np.isfinite(bad):
        assert native.integers(weight, spec, scales) is None
        assert native.values(weight, spec, scales) is None
    scales[3, 1] = np.nan
    assert native.values(np.ones((40, 70), np.float32), spec, scales) is None
    assert native.scales(np.ones((40, 70)), spec, None) is None, "float64"


def test_the_installed_library_is_used() -> None:
    assert isinstance(library_rounding(), LibraryRounding)


def test_an_older_library_leaves_the_work_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    library_rounding.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    try:
        assert library_rounding() is None
    finally:
        library_rounding.cache_clear()
