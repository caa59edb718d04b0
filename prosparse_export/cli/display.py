"""Progress of long commands on stderr: bars on a terminal, lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prosparse_export.cli.interruption import raise_if_interrupted
from prosparse_export.cli.time_left import TimeLeft
from prosparse_export.progress import ProgressCallback

__all__ = ["Lines", "stages"]


_LINE_EVERY = 10.0  # seconds between lines of one stage, without a terminal


@contextmanager
def stages(
    *, quiet: bool, console: Console | None = None, expected: Mapping[str, float] | None = None
) -> Iterator[ProgressCallback]:
    """Yield a callback that displays progress on stderr.

    Stages with a detail count bytes and show them; other stages show a percentage. Both show the time left.

    Args:
        quiet: show nothing.
        console: where to; stderr by default.
        expected: seconds by stage, in order, if they are known: then every stage shows the time left in all.
    """
    console = console or Console(stderr=True, highlight=False)
    if quiet:
        yield lambda stage, done, total, detail="": raise_if_interrupted()
    elif console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=console) as bars:
            yield _bars(bars, expected)
    else:
        yield Lines(console, expected=expected)


def _bars(
    bars: Progress, expected: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic
) -> ProgressCallback:
    tasks: dict[str, TaskID] = {}
    began = clock()
    time_left = TimeLeft(expected) if expected else None
    whole = bars.add_task("in all", total=None, amount="", detail="") if expected else None

    def show(stage: str, done: int, total: int, detail: str = "") -> None:
        raise_if_interrupted()
        if time_left is not None and whole is not None:
            now = clock() - began
            left = time_left(now, stage, done, total)
            bars.update(whole, completed=now, total=now + left, amount=f"about {_duration(left)} left")
        if stage not in tasks:
            for task in tasks.values():
                bars.update(task, total=1, completed=1, detail="")
            tasks[stage] = bars.add_task(stage, total=None, amount="", detail="")
        if total:
            amount = _amount(done, total) if detail else ""
            bars.update(tasks[stage], completed=done, total=total, amount=amount, detail=detail)

    return show


class Lines:
    """Progress without a terminal: a line when a stage begins, and its progress every 10 s.

    The time left is estimated from the rate of the current stage, or of all stages if they are known.

    Args:
        console: prints the lines.
        clock: a monotonic clock in seconds.
        expected: seconds by stage, in order, if they are known.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        expected: Mapping[str, float] | None = None,
    ) -> None:
        self._console = console
        self._time_left = TimeLeft(expected) if expected else None
        self._clock = clock
        self._began = clock()
        self._printed = 0.0
        self._stage = ""
        self._base = (0.0, 0)  # start of the current count: time, and what was done then
        self._seen = (0, 0)  # done and total of the last call

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Show progress; see `ProgressCallback`."""
        raise_if_interrupted()
        now = self._clock() - self._began
        begins = stage != self._stage
        restarts = done < self._seen[0] or (total != self._seen[1] and self._seen[1] > 0)
        if begins or restarts:  # a stage may count several things in turn
            self._base = (now, done)
        self._stage, self._seen = stage, (done, total)
        in_all = self._time_left(now, stage, done, total) if self._time_left is not None else None
        if not begins and not (total and now - self._printed >= _LINE_EVERY):
            return
        self._printed = now
        more = "" if begins else f" {self._progress(now, detail, in_all)}"
        if begins and in_all is not None:
            more = f", about {_duration(in_all)} left in all"
        self._console.print(f"[{now:6.1f} s] {stage}{more}", markup=False, soft_wrap=True)

    def _progress(self, now: float, detail: str, in_all: float | None) -> str:
        done, total = self._seen
        began, before = self._base
        text = _amount(done, total) if detail else f"{100 * done / total:.0f}%"
        if in_all is not None:
            text += f", about {_duration(in_all)} left in all"
        elif done > before:
            left = (now - began) * (total - done) / (done - before)
            text += f", about {_duration(left)} left"
        return f"{text} {detail}" if detail else text


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _amount(done: int, total: int) -> str:
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e9 else f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
