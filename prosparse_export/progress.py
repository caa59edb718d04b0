"""How long work says what it is doing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Report"]


class Report(Protocol):
    """What the stages of an export call with their progress."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Take a stage's name, how much of it is done, of how much (0: unknown), and what in particular."""
