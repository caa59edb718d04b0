"""Greedy tokens and ties."""

from __future__ import annotations

import numpy as np
import pytest
from support.validations import random_logits

from prosparse_export.validation.exactness import Expected, greedy_match, pad_left
from prosparse_export.validation.metrics import Difference
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.reference import Continuation, Reference


def test_greedy_match_ends_at_the_first_difference() -> None:
    c = Continuation(np.zeros(1, np.int64), random_logits(0), np.array([1, 2, 3, 4]), np.zeros(4, np.float32))
    assert greedy_match(np.array([1, 2, 9, 4]), c) == 2
    assert greedy_match(np.array([1, 2, 3, 4]), c) == 4


@pytest.mark.parametrize(("gap", "differs", "compared"), [(0.0019, 0, 1), (0.0021, 2, 4)])
def test_tokens_after_a_tie_may_differ(gap: float, differs: int, compared: int) -> None:
    gaps = np.array([1, gap, 1, 1], np.float32)
    continuation = Continuation(np.zeros(1, np.int64), random_logits(0), np.array([1, 2, 3, 4]), gaps)
    reference = Reference(None, (continuation,), 1.0)  # type: ignore[arg-type]  # no logits are read
    expected = Expected(reference, (), 1e-3, ValidationOptions())
    result = expected.comparison("run", Difference(tokens=1), [np.array([1, 9, 9, 4])])
    assert (result.greedy_differs, result.greedy_tokens, result.passed) == (differs, compared, differs == 0)


def test_a_nan_difference_fails() -> None:
    expected = Expected(Reference(None, (), 1.0), (), 1e-3, ValidationOptions())  # type: ignore[arg-type]
    assert expected.comparison("run", Difference(tokens=1, max_abs_diff=1e-3), []).passed
    assert not expected.comparison("run", Difference(tokens=1, max_abs_diff=float("nan")), []).passed


def test_padding_is_on_the_left() -> None:
    ids, mask = pad_left([np.array([5]), np.array([6, 7, 8])])
    np.testing.assert_array_equal(ids, [[0, 0, 5], [6, 7, 8]])
    np.testing.assert_array_equal(mask, [[0, 0, 1], [1, 1, 1]])
