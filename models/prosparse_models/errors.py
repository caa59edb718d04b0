"""The error for a model folder that cannot be read."""

from __future__ import annotations

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A model folder is not what it should be.

    Args:
        message: one line: what, where, expected, got.
        hint: the next action for the user, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
