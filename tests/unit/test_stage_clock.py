"""Wall time by stage."""

from __future__ import annotations

import pytest

from prosparse_export.validation import stage_clock
from prosparse_export.validation.stage_clock import StageClock


def test_time_is_added_up_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr(stage_clock.time, "perf_counter", lambda: next(times))
    calls: list[tuple[str, int, int, str]] = []
    clock = StageClock(lambda stage, done, total, detail="": calls.append((stage, done, total, detail)))
    for stage in ("a", "b", "a", "done"):
        clock(stage)
        clock(stage, 1, 2, "x")
    assert clock.seconds == {"a": 3.0, "b": 4.0}
    assert calls[:2] == [("a", 0, 0, ""), ("a", 1, 2, "x")]
