"""Rounding to integers and back, against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graph_passes.formats import FORMAT_SPECS, QUANT_GROUP, Format
from graph_passes.weights.group_scales import WeightRangeError
from graph_passes.weights.quantization import dequantize, pack, plausible_scales, quantize, rounded, scales_of, unpack

INTEGERS: list[Format] = ["i8", "i4", "nl4"]
LEVELS = {
    "i8": np.arange(-127.0, 128),
    "i4": np.arange(-8.0, 8),
    "nl4": np.array([-64.0, -50, -40, -31, -24, -17, -11, -5, 0, 7, 13, 20, 28, 36, 47, 62]),
}
HALF_ULP = 2.0**-11  # of float16, relative
DIVISION = 2.0**-17  # float32's quotient of at most 128 is off by 128 * 2^-24


def matrix(rows: int = 130, cols: int = 70, seed: int = 0) -> np.ndarray:
    """More rows than are rounded at a time, a last group of 6 columns, and no subnormal float16 scales."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, cols)) * 10 ** rng.uniform(-1, 3, (rows, 1))).astype(np.float32)


def integers_of(stored: np.ndarray, cols: int, weights: Format) -> np.ndarray:
    """The integers as float64, unpacked with arithmetic of its own: the even column is in the low half."""
    if stored.dtype == np.int8:
        return stored.astype(np.float64)
    values = np.empty((len(stored), 2 * stored.shape[1]))
    values[:, ::2], values[:, 1::2] = stored % 16, stored // 16
    return LEVELS[weights][values[:, :cols].astype(int)]


def spread(scales: np.ndarray, cols: int) -> np.ndarray:
    return np.repeat(scales.astype(np.float64), QUANT_GROUP, axis=1)[:, :cols]


@pytest.mark.parametrize("weights", INTEGERS)
def test_stored_shapes(weights: Format) -> None:
    weight = matrix()
    stored, scales = quantize(weight, weights)
    assert scales.dtype == np.float16
    assert scales.shape == (130, 3)
    np.testing.assert_array_equal(scales_of(weight, weights), scales)
    assert stored.shape == (130, FORMAT_SPECS[weights].stored_columns(70))


@pytest.mark.parametrize("weights", INTEGERS)
def test_integers_are_rounded_to_nearest(weights: Format) -> None:
    weight = matrix()
    stored, scales = quantize(weight, weights)
    got = integers_of(stored, 70, weights)
    quotient = weight.astype(np.float64) / spread(scales, 70)
    distances = np.sort(np.abs(quotient[..., None] - LEVELS[weights]), axis=-1)
    near_a_tie = distances[..., 1] - distances[..., 0] <= 2 * DIVISION
    assert near_a_tie.mean() < 0.01
    np.testing.assert_array_equal(np.abs(got - quotient)[~near_a_tie], distances[~near_a_tie][:, 0])
    assert (np.abs(got - quotient)[near_a_tie] <= distances[near_a_tie][:, 1]).all()
    assert (got.min(), got.max()) == (LEVELS[weights][0], LEVELS[weights][-1])


@pytest.mark.parametrize("weights", INTEGERS)
def test_dequantized_weights_are_exact_and_near(weights: Format) -> None:
    weight = matrix()
    stored, scales = quantize(weight, weights)
    values = dequantize(stored, scales, 70, weights)
    exact = integers_of(stored, 70, weights) * spread(scales, 70)  # 8 and 11 bits: exact in float32 too
    np.testing.assert_array_equal(values.astype(np.float64), exact)
    np.testing.assert_array_equal(rounded(weight, weights), values)


def test_i4_pairs_of_columns_share_a_byte() -> None:
    weight = np.zeros((1, 3), np.float32)
    weight[0] = [-8, 1, 7]  # the scale is 1
    stored, scales = quantize(weight, "i4")
    assert stored.shape == (1, 16)
    assert stored[0, :3].tolist() == [0x90, 0x8F, 0x88]  # -8 and 1; 7 and padding
    assert scales.tolist() == [[1.0]]
    assert unpack(stored, "i4")[0, :4].tolist() == [-8, 1, 7, 0]


def test_nl4_stores_places() -> None:
    weight = np.zeros((1, 3), np.float32)
    weight[0] = [-64, 7, 62]  # the scale is 1
    stored, scales = quantize(weight, "nl4")
    assert stored[0, :3].tolist() == [0x90, 0x8F, 0x88]  # -64 and 7; 62 and padding
    assert scales.tolist() == [[1.0]]
    assert unpack(stored, "nl4")[0, :4].tolist() == [-64, 7, 62, 0]
    np.testing.assert_array_equal(pack(unpack(stored, "nl4"), "nl4"), stored)


def test_nl4_errs_less_than_i4_on_normal_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    errors = [np.square(rounded(weight, name) - weight).mean() for name in ("i4", "nl4")]
    assert errors[1] / errors[0] == pytest.approx(0.815, abs=0.01)  # formats.py
    for name, error in zip(("i4", "nl4"), errors, strict=True):
        assert np.sqrt(error) == pytest.approx(FORMAT_SPECS[name].error, rel=0.03)  # type: ignore[index]


@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_weights_too_small_for_a_scale_become_0(weights: Format, weight: float) -> None:
    stored, scales = quantize(np.full((2, 40), weight, np.float32), weights)
    assert not scales.any()
    assert not integers_of(stored, 40, weights).any()
    assert not rounded(np.full((2, 40), weight, np.float32), weights).any()


@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e8])
def test_weights_without_a_scale_raise(weights: Format, bad: float) -> None:
    weight = matrix(2, 40)
    weight[1, 35] = bad
    for function in (quantize, rounded, scales_of):
        expected = "too large" if bad == 1e8 else "expected finite weights, got NaN or Inf"
        with pytest.raises(WeightRangeError, match=expected) as caught:
            function(weight, weights)
        assert caught.value.hint


@pytest.mark.parametrize(("weights", "bits"), [("f16", 11), ("bf16", 8)])
def test_float_formats_round_to_their_precision(weights: Format, bits: int) -> None:
    weight = matrix().clip(-1e3, 1e3)
    weight[np.abs(weight) < 1e-4] = 0  # float16 is subnormal there
    change = np.abs(rounded(weight, weights).astype(np.float64) - weight)
    assert change.max() > 0
    assert (change <= np.abs(weight.astype(np.float64)) * 2.0**-bits).all()
    np.testing.assert_array_equal(rounded(weight, "f32"), weight)
    assert np.isinf(rounded(np.full((1, 1), 1e6, np.float32), "f16")).all()


@pytest.mark.parametrize("weights", INTEGERS)
def test_given_scales_are_used(weights: Format) -> None:
    weight = matrix()
    importance = np.random.default_rng(1).exponential(size=70).astype(np.float32)
    stored, scales = quantize(weight, weights, importance)
    np.testing.assert_array_equal(scales_of(weight, weights, importance), scales)
    np.testing.assert_array_equal(quantize(weight, weights, scales=scales)[0], stored)
    np.testing.assert_array_equal(rounded(weight, weights, scales), dequantize(stored, scales, 70, weights))


@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("factor", [1.0, 0.1, 3.0, 0.0, np.nan])
def test_plausible_scales(weights: Format, factor: float) -> None:
    weight = matrix()
    weight[3] = 0.0
    importance = 10 ** np.random.default_rng(1).uniform(-4, 4, 70).astype(np.float32)
    scales = scales_of(weight, weights, importance)
    scales[7, 1] *= np.float16(factor)
    assert plausible_scales(weight, weights, scales) == (factor == 1.0)
    assert not plausible_scales(weight, weights, scales[:, :2])
