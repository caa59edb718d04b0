"""Progress where there is no terminal: lines every 10 s, with the time left by the stage's own rate."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console

from prosparse_export.cli.display import Lines

Call = tuple[float, str, int, int, str]


def lines(calls: Iterable[Call]) -> list[str]:
    """Return what is printed if reports come at the given seconds after the start."""
    now = 1000.0  # a clock need not begin at 0
    stream = io.StringIO()
    report = Lines(Console(file=stream, width=40), clock=lambda: now)
    for seconds, stage, done, total, detail in calls:
        now = 1000.0 + seconds
        report(stage, done, total, detail)
    return stream.getvalue().splitlines()


def test_share_and_time_left_follow_from_the_stages_own_rate() -> None:
    calls = [(0.2, "load", 0, 0, "")]
    calls += [(0.2 + 0.5 * k, "PyTorch", k, 160, "") for k in range(1, 125)]  # one each half second, begun at 0.7
    assert lines([(0.0, "start", 0, 0, ""), *calls]) == [
        "[   0.0 s] start",
        "[   0.2 s] load",
        "[   0.7 s] PyTorch",
        "[  10.7 s] PyTorch 13%, about 70 s left",  # 21 of 160 done; 139 left
        "[  20.7 s] PyTorch 26%, about 60 s left",
        "[  30.7 s] PyTorch 38%, about 50 s left",
        "[  40.7 s] PyTorch 51%, about 40 s left",
        "[  50.7 s] PyTorch 63%, about 30 s left",
        "[  60.7 s] PyTorch 76%, about 20 s left",
    ]


def test_bytes_have_an_estimate_too() -> None:
    calls = [(float(k), "write", k * 50_000_000, 13_500_000_000, f"layers.{k}.weight") for k in range(0, 31, 3)]
    assert lines([*calls, (31.0, "check", 0, 0, "")]) == [
        "[   0.0 s] write",
        "[  12.0 s] write 0.60 of 13.50 GB, about 4 min left layers.12.weight",
        "[  24.0 s] write 1.20 of 13.50 GB, about 4 min left layers.24.weight",
        "[  31.0 s] check",
    ]


def test_a_stage_that_counts_anew_forgets_its_old_rate() -> None:
    """A fast first count, then a slow one of the same name and, at the end, one of the same total."""
    calls = [(0.0, "run", 0, 0, ""), (1.0, "run", 100, 100, "")]
    calls += [(1.0 + 10 * k, "run", k, 20, "") for k in range(1, 3)]
    calls += [(41.0, "run", 0, 20, ""), (51.0, "run", 10, 20, "")]
    assert lines(calls) == [
        "[   0.0 s] run",
        "[  11.0 s] run 5%",  # the new count's first report: no rate yet
        "[  21.0 s] run 10%, about 3 min left",
        "[  41.0 s] run 0%",
        "[  51.0 s] run 50%, about 10 s left",
    ]


def test_nothing_is_said_of_a_stage_without_a_total() -> None:
    assert lines([(float(k), "trace", 0, 0, "") for k in range(60)]) == ["[   0.0 s] trace"]


def test_days_are_hours() -> None:
    calls = [(0.0, "run", 0, 1000, ""), (100.0, "run", 1, 1000, "")]
    assert lines(calls)[1] == "[ 100.0 s] run 0%, about 27.8 h left"
