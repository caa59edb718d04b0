"""The root of all errors that a user can cause. It imports nothing, so that every package may import it."""

from __future__ import annotations

__all__ = ["ProSparseError"]


class ProSparseError(Exception):
    """An error that the user can fix. The command line prints its message and hint without a traceback.

    Args:
        message: one line: what, where, expected, got.
        hint: the next action, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
