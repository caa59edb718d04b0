"""Scales by search, against an exhaustive search in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graph_passes.formats import FORMAT_SPECS, FormatSpec
from graph_passes.weights.group_scales import group_scales, round_to_integers

I4, I8, NL4 = FORMAT_SPECS["i4"], FORMAT_SPECS["i8"], FORMAT_SPECS["nl4"]


def groups(count: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((32, count)) * 10 ** rng.uniform(-1, 2, count)).astype(np.float32)


def errors(
    weight: np.ndarray, scales: np.ndarray, spec: FormatSpec, importance: np.ndarray | float = 1.0
) -> np.ndarray:
    """The squared error of each group, with arithmetic of its own."""
    low, high = spec.levels or (0, 0)
    wide = scales.astype(np.float64)
    quotient = weight / np.where(wide == 0, np.inf, wide)
    levels = np.array(spec.table or range(low, high + 1), np.float64)
    integers = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, quotient)]
    return (importance * (weight - wide * integers) ** 2).sum(0)


def by_magnitude(weight: np.ndarray, spec: FormatSpec) -> np.ndarray:
    low, high = spec.levels or (0, 0)
    peak = np.take_along_axis(weight, np.abs(weight).argmax(0)[None], 0)[0]
    return np.abs(peak) / high if spec is I8 else peak / low


def best(weight: np.ndarray, spec: FormatSpec, importance: np.ndarray | float = 1.0) -> np.ndarray:
    """The smallest error of each group over 400 scales."""
    first = by_magnitude(weight, spec)
    signs = (1,) if spec is I8 else (1, -1)
    trials = [errors(weight, sign * f * first, spec, importance) for sign in signs for f in np.linspace(0.5, 1.2, 200)]
    return np.min(trials, axis=0)


@pytest.mark.parametrize("spec", [I4, NL4], ids=["i4", "nl4"])
def test_4_bit_scales_are_better_than_the_largest_magnitude_and_near_the_optimum(spec: FormatSpec) -> None:
    weight = groups()
    found = errors(weight, group_scales(weight, spec), spec).sum()
    assert found < 0.96 * errors(weight, by_magnitude(weight, spec), spec).sum()
    assert found < 1.05 * best(weight, spec).sum()


def test_i8_scales_are_never_worse_than_the_largest_magnitude_beyond_float16() -> None:
    weight = groups()
    found, plain = (errors(weight, s, I8) for s in (group_scales(weight, I8), by_magnitude(weight, I8)))
    half_ulp = (np.abs(weight) * 2.0**-11) ** 2  # of the scale
    assert (found <= plain + half_ulp.sum(0) + 2 * np.sqrt(plain * half_ulp.sum(0))).all()


@pytest.mark.parametrize("spec", [I4, NL4], ids=["i4", "nl4"])
def test_importance_decides_where_the_error_goes(spec: FormatSpec) -> None:
    weight = groups()
    importance = np.full_like(weight, 1e-3)
    importance[::8] = 1.0
    weighted = errors(weight, group_scales(weight, spec, importance), spec, importance).sum()
    assert weighted < 0.8 * errors(weight, group_scales(weight, spec), spec, importance).sum()
    assert weighted < 1.3 * best(weight, spec, importance).sum()


def test_importance_of_0_for_a_whole_group_keeps_the_largest_magnitude() -> None:
    weight = groups(4)
    scales = group_scales(weight, I4, np.zeros_like(weight))
    np.testing.assert_array_equal(scales, by_magnitude(weight, I4).astype(np.float16))


@pytest.mark.parametrize("spec", [I4, I8], ids=["i4", "i8"])
def test_groups_do_not_influence_each_other(spec: FormatSpec) -> None:
    weight = groups()
    np.testing.assert_array_equal(group_scales(weight, spec)[50:60], group_scales(weight[:, 50:60], spec))


def test_exact_weights_stay_exact() -> None:
    rng = np.random.default_rng(1)
    integers = rng.integers(-8, 8, (32, 100)).astype(np.float32)
    integers[0] = -8
    weight = integers * np.float32(0.125)
    scales = group_scales(weight, I4)
    out = np.empty_like(weight)
    round_to_integers(weight, scales, I4, out)
    np.testing.assert_array_equal(out * scales.astype(np.float32), weight)


def test_the_largest_float16_scale_does_not_overflow() -> None:
    weight = np.zeros((32, 1), np.float32)
    weight[0], weight[1:] = -65504.0 * 8, 65504.0 * 6.6
    assert np.isfinite(group_scales(weight, I4)).all()


def test_ties_go_to_the_lower_level_of_a_table() -> None:
    weight = np.zeros((32, 1), np.float32)
    weight[:6, 0] = [3.5, 3.75, -2.5, -2.25, -8.0, 70.0]
    out = np.empty_like(weight)
    round_to_integers(weight, np.ones(1, np.float16), NL4, out)
    assert out[:6, 0].tolist() == [0, 7, -5, 0, -11, 62]


def test_ties_go_to_even_integers() -> None:
    weight = np.zeros((32, 1), np.float32)
    weight[:5, 0] = [127, 0.5, 1.5, 2.5, -3.5]
    out = np.empty_like(weight)
    round_to_integers(weight, np.ones(1, np.float16), I8, out)
    assert out[:5, 0].tolist() == [127, 0, 2, 2, -4]
