"""Progress of the long commands, on stderr: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["describe_approximation", "stages"]


def describe_approximation(recorded: Mapping[str, Any]) -> str:
    """Return the manifest's entry on --approximate as one line."""
    return (
        f"{recorded['activation']} approximated, {recorded['keep']:.0%} of the neurons kept: perplexity "
        f"{recorded['perplexity_dense']:.4g} -> {recorded['perplexity']:.4g} ({recorded['perplexity_change']:+.2%}) on "
        f"{recorded['perplexity_tokens']} tokens of the calibration text that set no threshold; "
        f"zeros {recorded['sparsity']:.1%}"
    )


@contextmanager
def stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (stage, done, total) that shows what is going on; total 0 means unknown."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda stage, done, total: None
    elif console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield _bars(progress)
    else:
        yield _lines(console)


def _bars(progress: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                progress.update(task, total=1, completed=1)
            tasks[stage] = progress.add_task(stage, total=None)
        if total:
            progress.update(tasks[stage], completed=done, total=total)

    return report


def _lines(console: Console) -> Callable[[str, int, int], None]:
    began, current = time.monotonic(), ""

    def report(stage: str, done: int, total: int) -> None:
        nonlocal current
        if stage != current:
            current = stage
            console.print(f"[{time.monotonic() - began:6.1f} s] {stage}", markup=False)

    return report
