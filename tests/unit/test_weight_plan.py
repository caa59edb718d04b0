"""Formats of single matrices, and of FFNs whose matrices have different ones."""

from __future__ import annotations

import pytest

from graph_passes import FfnFormat, Format, WeightPlan

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
