"""Powers of two of a down_proj's outputs: exact, close to each output's magnitude, and worth having."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from graph_passes import are_output_powers, dequantize, divided, output_powers, quantize

D_FF, D_MODEL = 96, 71  # odd: the median is one of the magnitudes


def uneven() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weights whose outputs have magnitudes from 1/16 to 16, and those."""
    rng = np.random.default_rng(0)
    magnitudes = np.exp2(rng.integers(-4, 5, D_MODEL)).astype(np.float32)
    return rng.uniform(0.9, 1.1, (D_FF, D_MODEL)).astype(np.float32) * magnitudes, magnitudes


def test_recovers_magnitudes() -> None:
    weight, magnitudes = uneven()
    np.testing.assert_array_equal(output_powers(weight), magnitudes / np.median(magnitudes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_division_is_exact_in_any_layout(dtype: type) -> None:
    weight = uneven()[0].astype(dtype)
    powers = output_powers(weight)
    np.testing.assert_array_equal(powers, output_powers(np.ascontiguousarray(weight.T).T))
    over = divided(weight, powers)
    assert over.dtype == np.float32
    np.testing.assert_array_equal(over * powers, weight.astype(np.float32))


@pytest.mark.parametrize("weights", ["i8", "i4"])
def test_small_outputs_keep_their_precision(weights: str) -> None:
    weight, magnitudes = uneven()
    powers = output_powers(weight)
    plain = dequantize(*quantize(weight, weights), D_MODEL, weights)  # type: ignore[arg-type]
    even = dequantize(*quantize(divided(weight, powers), weights), D_MODEL, weights) * powers  # type: ignore[arg-type]
    small = magnitudes == magnitudes.min()
    errors = [float(np.abs(found - weight)[:, small].max() / magnitudes.min()) for found in (plain, even)]
    levels = 127 if weights == "i8" else 7
    assert errors[1] <= 0.55 * 1.1 / levels * 1.2 < errors[0]  # half a step of the group's largest, searched scales


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_outputs_without_a_magnitude_stay(bad: float) -> None:
    weight, _ = uneven()
    weight[:, 3] = bad
    powers = output_powers(weight)
    assert powers[3] == 1
    np.testing.assert_array_equal(np.delete(powers, 3), output_powers(np.delete(weight, 3, axis=1)))
    np.testing.assert_array_equal(output_powers(np.full((4, 3), bad, np.float32)), np.ones(3))


def test_powers_are_recognized() -> None:
    weight, _ = uneven()
    powers = output_powers(weight)
    assert are_output_powers(powers, weight)
    for factor, accepted in ((2, True), (0.5, True), (4, False), (1.5, False), (-1, False), (np.nan, False)):
        changed = powers.copy()
        changed[5] *= factor
        assert are_output_powers(changed, weight) == accepted, factor
    assert not are_output_powers(powers[:-1], weight)
    assert not are_output_powers(powers.astype(np.float64), weight)
