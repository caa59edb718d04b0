"""Choice of tokens, against probabilities computed the long way."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse_export import ProSparseError
from prosparse_export.runtime.sampling import Sampler, Sampling

LOGITS = np.array([[0.0, 3.0, 1.0, -2.0, 2.5, 1.5]], np.float32)
DRAWS = 20_000


def frequencies(sampling: Sampling) -> np.ndarray:
    sampler = Sampler(sampling, 1)
    tokens = [int(sampler.choose(LOGITS)[0]) for _ in range(DRAWS)]
    return np.bincount(tokens, minlength=LOGITS.shape[1]) / DRAWS


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return weights / weights.sum()


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert (actual[expected == 0.0] == 0.0).all()
    assert (np.abs(actual - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS)).all()  # five sigma


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    assert_close(frequencies(Sampling(temperature, seed=1)), softmax(LOGITS[0], temperature))


def test_top_k_keeps_the_top_k_tokens() -> None:
    expected = np.where(np.isin(np.arange(6), [1, 4, 5]), softmax(LOGITS[0], 1.0), 0.0)
    assert_close(frequencies(Sampling(1.0, top_k=3, seed=1)), expected / expected.sum())


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    p = softmax(LOGITS[0], 1.0)
    assert p[1] < 0.6 < p[1] + p[4]
    expected = np.where(np.isin(np.arange(6), [1, 4]), p, 0.0)
    assert_close(frequencies(Sampling(1.0, top_p=0.6, seed=1)), expected / expected.sum())


def test_top_p_counts_what_top_k_left() -> None:
    p = softmax(LOGITS[0], 1.0)
    left = p[[1, 4, 5]] / p[[1, 4, 5]].sum()
    assert left[0] < 0.55 < left[0] + left[1]
    expected = np.where(np.isin(np.arange(6), [1, 4]), p, 0.0)
    assert_close(frequencies(Sampling(1.0, top_k=3, top_p=0.55, seed=1)), expected / expected.sum())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(5.0, top_k=1), Sampling(5.0, top_p=1e-9)])
def test_greedy_and_what_amounts_to_it(sampling: Sampling) -> None:
    sampler = Sampler(sampling, 1)
    assert {int(sampler.choose(LOGITS)[0]) for _ in range(50)} == {1}


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    alone, batch = Sampler(Sampling(1.0, seed=7), 1), Sampler(Sampling(1.0, seed=7), 3)
    rows = np.concatenate([LOGITS, LOGITS[:, ::-1], 0 * LOGITS])
    both = [(int(alone.choose(LOGITS)[0]), batch.choose(rows)) for _ in range(50)]
    assert all(one == int(tokens[0]) for one, tokens in both)
    assert any(tokens[1] != tokens[2] for _, tokens in both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a number >= 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature: expected a number >= 0, got nan"),
        ({"top_k": -1}, "top_k: expected an integer >= 0, got -1"),
        ({"top_p": 0.0}, "top_p: expected a number > 0 and <= 1, got 0.0"),
    ],
)
def test_options_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ProSparseError, match=message):
        Sampling(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(value: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[0, 3] = value
    with pytest.raises(ProSparseError, match="logits: expected finite numbers"):
        Sampler(Sampling(temperature), 1).choose(logits)


def test_a_row_far_down_costs_no_more_than_the_first() -> None:
    logits = np.zeros((1, 1000), np.float32)
    first, batch = 3, Sampler(Sampling(1.0, seed=5), 4).choose(np.repeat(logits, 4, 0))
    assert Sampler(Sampling(1.0, seed=5), 1, first=first).choose(logits)[0] == batch[first]
    Sampler(Sampling(1.0, seed=5), 1, first=10**12)  # no generators for the rows before it


def test_a_temperature_near_0_is_greedy_without_a_warning() -> None:
    with np.errstate(over="raise"):
        assert Sampler(Sampling(1e-310), 1).choose(LOGITS[:1])[0] == LOGITS[0].argmax()
