"""The progressive schedule against the paper's Algorithm 1, written out anew."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from prosparse_models import l1_coefficient
from prosparse_models.training.recipe import load_recipe
from prosparse_models.training.schedule import stage_at

PAPER = {  # Tables 6 and 7: lambda_i, T_i
    "prosparse-7b": [(0, 5000), (5e-3, 6000), (5e-2, 10000), (5e-2, 12000), (2e-1, 16000), (2e-1, 16500)],
    "prosparse-13b": [(0, 5500), (5e-3, 6750), (1e-2, 10750), (1e-2, 11000), (2e-2, 15000), (2e-2, 16000)],
    "prosparse-1b": [(0, 10000), (1e-3, 15000), (5e-3, 20000), (5e-3, 25000), (5e-2, 35000), (5e-2, 95000)],
}


def algorithm_1(peaks: list[float], marks: list[int]) -> Iterator[float]:
    """The loop of the algorithm, one value per optimizer update; substitution (lambda 0) before it."""
    for _ in range(marks[0]):
        yield 0.0
    for _ in range(marks[0], marks[1]):  # warm-up stage
        yield peaks[1]
    for i in range(2, len(peaks)):  # incremental stages: eta over half a period, trough to peak
        length = marks[i] - marks[i - 1]
        for t in range(1, length + 1):
            eta = (math.sin(-math.pi / 2 + t * math.pi / length) + 1) / 2
            yield (1 - eta) * peaks[i - 1] + eta * peaks[i]


@pytest.mark.parametrize("name", PAPER)
def test_is_algorithm_1_at_every_step(name: str) -> None:
    recipe = load_recipe(name)
    assert list(recipe.stages) == PAPER[name]
    peaks, marks = zip(*PAPER[name], strict=True)
    expected = list(algorithm_1(list(peaks), list(marks)))
    assert len(expected) == recipe.steps == marks[-1]
    worst = max(abs(l1_coefficient(t, recipe.stages) - e) for t, e in enumerate(expected, start=1))
    assert worst <= 1e-12


def test_stages_and_ends() -> None:
    stages = [(0.0, 5), (1.0, 10), (3.0, 20)]
    assert [l1_coefficient(t, stages) for t in (1, 5, 6, 10, 15, 20, 21, 1000)] == [0, 0, 1, 1, 2, 3, 3, 3]
    assert [stage_at(t, stages) for t in (1, 5, 6, 10, 11, 20, 21)] == [0, 0, 1, 1, 2, 2, 2]
    assert 1.0 < l1_coefficient(11, stages) < 1.1  # zero slope: the first step of ten moves by less than 3%


@pytest.mark.parametrize(
    ("step", "stages", "message"),
    [
        (0, [(0.0, 5)], "step: expected 1 or more, got 0"),
        (1, [], "expected at least one"),
        (1, [(0.0, 5), (1.0, 5)], "stage 1: last_step: expected more than 5, got 5"),
        (1, [(0.0, 0)], "stage 0: last_step: expected more than 0"),
        (1, [(0.0, 5), (float("nan"), 9)], "stage 1: lambda: expected a finite number"),
        (1, [(-1.0, 5)], "stage 0: lambda"),
    ],
)
def test_rejects(step: int, stages: list[tuple[float, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        l1_coefficient(step, stages)
