"""The one error that a user can cause."""

from __future__ import annotations

__all__ = ["ProSparseError"]


class ProSparseError(Exception):
    """Something that the user can mend. The command line prints it without a traceback.

    Args:
        message: one line: what, where, expected, got.
        hint: the next action, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
