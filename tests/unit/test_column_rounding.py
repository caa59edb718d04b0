"""Integers and scales for given second moments: each step lowers the error of the outputs."""

from __future__ import annotations

import pytest
import torch

from graph_passes import FORMAT_SPECS
from prosparse_export.export.column_rounding import fit_scales, improve_integers, inverse_factor, round_columns

D_OUT, D_IN = 24, 300  # more than two blocks of columns; no multiple of 32


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moments() -> torch.Tensor:
    inputs = torch.randn(900, D_IN, generator=torch.Generator().manual_seed(1))
    inputs[:, 1:] += 0.8 * inputs[:, :-1]
    return inputs.T @ inputs


def each(scales: torch.Tensor) -> torch.Tensor:
    return scales.repeat_interleave(32, 1)[:, :D_IN]


@pytest.fixture
def scales(weight: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(weight, (0, -D_IN % 32))
    return padded.reshape(D_OUT, -1, 32).abs().amax(2) / 7


def error(weight: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor) -> float:
    difference = (weight - integers * each(scales)).double()
    return float(((difference @ moments.double()) * difference).sum())


def test_the_factor_is_of_the_inverse(moments: torch.Tensor) -> None:
    factor = inverse_factor(moments)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ moments, torch.eye(D_IN), rtol=0, atol=1e-2)


def test_columns_make_up_for_earlier_ones(weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor) -> None:
    found = round_columns(weight.T, each(scales).T, inverse_factor(moments), "i4").T
    nearest = (weight / each(scales)).round().clamp(-8, 7)
    assert error(weight, found, scales, moments) < 0.6 * error(weight, nearest, scales, moments)
    assert (found - nearest).abs().max() <= 4


def test_columns_of_unequal_levels_make_up_for_each_other(weight: torch.Tensor, moments: torch.Tensor) -> None:
    """nl4: every integer is one of 16 levels, at most four of them from the nearest."""
    padded = torch.nn.functional.pad(weight, (0, -D_IN % 32))
    scales = padded.reshape(D_OUT, -1, 32).abs().amax(2) / 62
    levels = torch.tensor(FORMAT_SPECS["nl4"].table)
    places = ((weight / each(scales))[..., None] - levels).abs().argmin(-1)
    nearest = levels[places].float()
    rounded = round_columns(weight.T, each(scales).T, inverse_factor(moments), "nl4").T
    improved = improve_integers(weight.T, rounded.T, each(scales).T, moments, "nl4").T
    errors = [error(weight, found, scales, moments) for found in (improved, rounded, nearest)]
    assert errors[0] < errors[1] < 0.6 * errors[2]
    for found in (rounded, improved):
        assert set(found.unique().tolist()) <= set(levels.tolist())
        assert (torch.searchsorted(levels, found.contiguous()) - places).abs().max() <= 4
    start = levels.flip(0)[places].float()  # the farthest ones
    found = improve_integers(weight.T, start.T, each(scales).T, moments, "nl4").T
    assert (torch.searchsorted(levels, found.contiguous()) - places).abs().max() == 4


def test_columns_move_no_weight_by_more_than_three_steps(weight: torch.Tensor, scales: torch.Tensor) -> None:
    """Inputs that are nearly the same: all errors so far would move into the next column."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(900, 1, generator=generator) + 1e-2 * torch.randn(900, D_IN, generator=generator)
    clipped = 0.3 * scales  # so that errors are large and of one sign per weight
    found = round_columns(weight.T, each(clipped).T, inverse_factor(inputs.T @ inputs), "i4").T
    steps = weight / each(clipped)
    assert (found - steps.clamp(-8, 7)).abs().max() <= 3.5
    inside = steps.abs() < 4
    assert (found - steps)[inside].abs().max() > 3


def test_a_column_at_a_time(weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor) -> None:
    """In blocks, the result is that of choosing each column by the definition."""
    nearest = (weight / each(scales)).round().clamp(-8, 7)
    found = improve_integers(weight.T, nearest.T.contiguous(), each(scales).T, moments, "i4").T
    expected = nearest.double()
    w, s, h = weight.double(), each(scales).double(), moments.double()
    for j in range(D_IN):
        left = ((w - expected * s) @ h[:, j]) / h[j, j] + expected[:, j] * s[:, j]
        expected[:, j] = (left / s[:, j]).round().clamp(-8, 7).clamp(nearest[:, j] - 4, nearest[:, j] + 4)
    assert (found != expected).double().mean() < 1e-3  # float32 decides ties differently
    assert error(weight, found, scales, moments) < 0.7 * error(weight, nearest, scales, moments)
    again = improve_integers(weight.T, found.T.contiguous(), each(scales).T, moments, "i4").T
    assert error(weight, again, scales, moments) <= error(weight, found, scales, moments) * (1 + 1e-5)


def test_integers_stay_within_four_steps_of_the_nearest(
    weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor
) -> None:
    nearest = (weight / each(scales)).round().clamp(-8, 7)
    start = -nearest.clamp(-7, 7)
    found = improve_integers(weight.T, start.T.contiguous(), each(scales).T, moments, "i4").T
    assert (found - nearest).abs().max() == 4


def test_scales_are_the_least_squares_solution(
    weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    integers = (weight / each(scales)).round().clamp(-8, 7)
    found = fit_scales(weight, integers, scales, moments)
    best = error(weight, integers, found, moments)
    assert best < 0.99 * error(weight, integers, scales, moments)
    for factor in (0.99, 1.01):
        for group in (0, found.shape[1] - 1):
            other = found.clone()
            other[:, group] *= factor
            assert error(weight, integers, other, moments) > best
    monkeypatch.setattr("prosparse_export.export.column_rounding._SYSTEMS", 7 * scales.shape[1] ** 2)
    torch.testing.assert_close(fit_scales(weight, integers, scales, moments), found, rtol=1e-4, atol=1e-6)


def test_scales_of_groups_without_integers_stay(
    weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor
) -> None:
    integers = (weight / each(scales)).round().clamp(-8, 7)
    integers[:, 32:64] = 0
    integers[3] = 0
    found = fit_scales(weight, integers, scales, moments)
    torch.testing.assert_close(found[:, 1], scales[:, 1])
    torch.testing.assert_close(found[3], scales[3])
