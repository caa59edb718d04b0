"""What the tests of training share: a short recipe, a monitor, and comparisons of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prosparse_export.cli import main
from prosparse_models.training.recipe import Recipe, Training

STAGES = ((0.0, 3), (0.1, 5), (1.0, 10), (1.0, 12))
RECIPE = Recipe(
    name="test",
    stages=STAGES,
    training=Training(
        context=32, sequences_per_step=4, micro_batch=2, learning_rate=3e-3, warmup_steps=2, precision="float32"
    ),
)


class Notes:
    """A monitor that keeps what it receives.

    Args:
        on_record: called with each training record.
    """

    def __init__(self, on_record: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
        self.records: list[dict[str, Any]] = []
        self.moments: list[str] = []
        self.stages: list[str] = []
        self._on_record = on_record

    def progress(self, stage: str, done: int, total: int, detail: str = "") -> None:
        self.stages.append(stage)

    def record(self, record: dict[str, Any], steps: int) -> None:
        self.records.append(record)
        self._on_record(record)

    def evaluation(self, when: str, measurement: Any) -> None:
        self.moments.append(when)


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "sparsify.json").read_text())
    return summary


def records_of(out: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = summary_of(out)["records"]
    return records


def assert_same_records(actual: list[dict[str, Any]], expected: list[dict[str, Any]], rtol: float) -> None:
    assert [r["step"] for r in actual] == [r["step"] for r in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours["lambda"] == theirs["lambda"]
        for name in ("loss", "cross_entropy", "l1"):
            assert ours[name] == pytest.approx(theirs[name], rel=rtol), (ours["step"], name)


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])
