"""The errors that a user can cause here."""

from __future__ import annotations

__all__ = ["CheckpointError", "TrainingError"]


class _UserError(ValueError):
    """An error with advice.

    Args:
        message: one line: what, where, expected, got.
        hint: the next action for the user, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(_UserError):
    """A model folder is not what it should be."""


class TrainingError(_UserError):
    """Sparsifying or calibrating cannot start or go on: recipe, text, model or numbers are at fault."""
