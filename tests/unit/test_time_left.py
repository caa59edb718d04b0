"""The time left of an export: known from the first second, corrected by what its stages took."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from prosparse_export.cli.display import Lines, _bars
from prosparse_export.cli.time_left import TimeLeft, export_seconds

EXPECTED = {"start": 5.0, "trace": 10.0, "write": 20.0, "check": 5.0}


def test_the_first_estimate_is_the_sum() -> None:
    assert TimeLeft(EXPECTED)(0.0, "start", 0, 0) == 40.0


def test_stages_that_took_twice_as_long_double_what_is_left() -> None:
    left = TimeLeft(EXPECTED)
    left(0.0, "start", 0, 0)
    assert left(10.0, "trace", 0, 0) == 2 * 35.0
    assert left(25.0, "trace", 0, 0) == 2 * 35.0 - 15.0
    assert left(45.0, "trace", 0, 0) == 2 * 25.0  # late: nothing is left of it, and no less than nothing


def test_a_stage_that_counts_says_what_is_left_of_it() -> None:
    left = TimeLeft(EXPECTED)
    left(0.0, "start", 0, 0)
    left(5.0, "trace", 0, 0)
    left(15.0, "write", 0, 0)
    left(16.0, "write", 100, 1000)
    assert left(18.0, "write", 200, 1000) == pytest.approx(2.0 * 8 + 5.0)  # 100 took 2 s


def test_stages_that_are_left_out_or_unknown() -> None:
    left = TimeLeft(EXPECTED)
    left(0.0, "start", 0, 0)
    assert left(5.0, "profile", 0, 0) == 35.0  # unknown: not counted
    assert left(95.0, "write", 0, 0) == 25.0  # and no reason to think that this machine is slow


def test_lines_say_it_from_the_first_second() -> None:
    now = 50.0
    stream = io.StringIO()
    report = Lines(Console(file=stream, width=40), clock=lambda: now, expected=EXPECTED)
    for seconds, stage, done, detail in [(0, "start", 0, ""), (5, "trace", 0, ""), (15, "write", 0, "")] + [
        (15 + k, "write", 10_000_000 * k, "layers.0.weight") for k in range(1, 13)
    ]:
        now = 50.0 + seconds
        report(stage, done, 200_000_000 if detail else 0, detail)
    assert stream.getvalue().splitlines() == [
        "[   0.0 s] start, about 40 s left in all",
        "[   5.0 s] trace, about 35 s left in all",
        "[  15.0 s] write, about 25 s left in all",
        "[  25.0 s] write 100 of 200 MB, about 15 s left in all layers.0.weight",
    ]


def test_a_terminal_shows_it_beside_the_bars() -> None:
    now = 0.0
    stream = io.StringIO()
    with Progress(console=Console(file=stream, force_terminal=True), auto_refresh=False) as bars:
        report = _bars(bars, EXPECTED, lambda: now)
        report("start", 0, 0)
        now = 5.0
        report("trace", 0, 0)
        whole, *stages = bars.tasks
        assert (whole.description, whole.completed, whole.total) == ("in all", 5.0, 40.0)
        assert whole.fields["amount"] == "about 35 s left"
        assert [task.description for task in stages] == ["start", "trace"]


def test_bytes_of_weights_decide(tmp_path: Path) -> None:
    empty = sum(export_seconds(tmp_path, measures_inputs=False).values())
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2_000_000_000)  # a sparse file
    full = export_seconds(tmp_path, measures_inputs=False)
    assert sum(full.values()) > empty + 20
    measured = export_seconds(tmp_path, measures_inputs=True)
    assert list(measured) == ["start", "load", "trace", "measure inputs", "rewrite", "write", "check", "publish"]
    assert sum(measured.values()) == sum(full.values()) + 20.0
    with_text = export_seconds(tmp_path, measures_inputs=True, profiles=True, compensates=True, budgets=True)
    assert list(with_text)[3:7] == ["profile", "measure inputs", "measure formats", "round"]
    assert sum(with_text.values()) == pytest.approx(sum(full.values()) + 60 + 80 + 200 + 200)
    assert sum(export_seconds(tmp_path / "missing", measures_inputs=False).values()) == empty
