"""Formats of single matrices, and of FFNs whose matrices have different ones."""

from __future__ import annotations

import numpy as np
import pytest

from graph_passes import FfnFormat, Format, RoundedMatrix, WeightPlan

FFN = ["gate", "up", "down"]


def test_a_plan_of_one_format() -> None:
    assert WeightPlan.of("i8") == WeightPlan("i8", "i8")
    assert WeightPlan.of("i4i8") == WeightPlan("i4i8", "i4")
    assert WeightPlan.of("i4i8").ffn_format(FFN) == "i4i8"
    assert WeightPlan.of("f16").linear_format("lm_head") == "f16"


def test_exceptions_outside_ffns() -> None:
    plan = WeightPlan("i4", "i4", {"lm_head": "i8"})
    assert [plan.linear_format(name) for name in ("lm_head", "q")] == ["i8", "i4"]


@pytest.mark.parametrize(
    ("exceptions", "expected"),
    [
        ({"down": "i8"}, "i4i8"),
        ({"gate": "i8", "up": "i8", "down": "i8"}, "i8"),
        ({"gate": "i8", "down": "i8"}, "i8"),
        ({"up": "i8"}, "i8"),  # no operator has i8 before an i4 down_proj
        ({"other": "i8"}, "i4"),
    ],
)
def test_an_ffn_gets_the_narrowest_operator_that_is_wide_enough(
    exceptions: dict[str, Format], expected: FfnFormat
) -> None:
    assert WeightPlan("i4", "i4", exceptions).ffn_format(FFN) == expected
    assert WeightPlan("nl4", "nl4", exceptions).ffn_format(FFN) == expected.replace("i4", "nl4")


def test_matrices_that_are_rounded_already_are_packed_by_rows() -> None:
    q, k = (
        RoundedMatrix(np.full((rows, 16), rows, np.uint8), np.full((rows, 1), rows, np.float16), "i4")
        for rows in (3, 2)
    )
    down = RoundedMatrix(np.zeros((4, 16), np.uint8), np.zeros((4, 1), np.float16), "i4", is_down=True)
    plan = WeightPlan("i4", "i4", rounded={"a.q": q, "a.k": k, "down": down})
    read = plan.already_rounded("a.q+k", "i4")
    assert read is not None
    integers, scales = read()
    assert integers[:, 0].tolist() == scales[:, 0].tolist() == [3, 3, 3, 2, 2]
    assert plan.already_rounded("down", "i4", is_down=True) is not None
    assert plan.already_rounded("down", "i4") is None  # stored the other way
    assert plan.already_rounded("a.q", "i8") is None
    assert plan.already_rounded("a.q", "nl4") is None
    assert plan.already_rounded("a.q+v", "i4") is None
