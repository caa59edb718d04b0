"""Progress reporting for long-running tasks."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ProgressCallback", "no_progress"]


class ProgressCallback(Protocol):
    """Called at the start of each stage and as work proceeds."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Report progress.

        Args:
            stage: name of the stage.
            done: units of work finished: bytes where ``detail`` is given.
            total: units of work in all; 0 if unknown.
            detail: the item being processed, such as a tensor's name.
        """


def no_progress(stage: str, done: int, total: int, detail: str = "") -> None:
    """Ignore progress."""
