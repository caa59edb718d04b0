"""Errors that a model folder or a training run can cause."""

from __future__ import annotations

from prosparse_export.errors import ProSparseError

__all__ = ["CheckpointError", "TrainingError"]


class CheckpointError(ProSparseError):
    """A model folder is missing, damaged or unsupported."""


class TrainingError(ProSparseError):
    """Training or calibration cannot start or continue: the recipe, text, model or a loss is at fault."""
