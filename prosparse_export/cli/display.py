"""Progress of the long commands, on stderr: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prosparse_export.cli.interruption import raise_if_interrupted
from prosparse_export.progress import Report

__all__ = ["stages"]


_LINE_EVERY = 10.0  # seconds between lines of one stage where there is no terminal


@contextmanager
def stages(*, quiet: bool) -> Iterator[Report]:
    """Yield a function that shows what is going on.

    What has a detail is counted in bytes: it shows them, and what is left of the time.
    """
    console = Console(stderr=True, highlight=False)
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
        with Progress(*columns, console=console) as progress:
            yield _bars(progress)
    else:
        yield _lines(console)


def _bars(progress: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int, detail: str = "") -> None:
        raise_if_interrupted()
        if stage not in tasks:
            for task in tasks.values():
                progress.update(task, total=1, completed=1, detail="")
            tasks[stage] = progress.add_task(stage, total=None, amount="", detail="")
        if total:
            amount = _amount(done, total) if detail else ""
            progress.update(tasks[stage], completed=done, total=total, amount=amount, detail=detail)

    return report


def _lines(console: Console) -> Report:
    began, current, last = time.monotonic(), "", 0.0

    def report(stage: str, done: int, total: int, detail: str = "") -> None:
        nonlocal current, last
        raise_if_interrupted()
        now = time.monotonic() - began
        if stage == current and not (detail and total and now - last >= _LINE_EVERY):
            return
        more = f" {_amount(done, total)} {detail}" if stage == current else ""
        current, last = stage, now
        console.print(f"[{now:6.1f} s] {stage}{more}", markup=False)

    return report


def _amount(done: int, total: int) -> str:
    return f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e9 else f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
