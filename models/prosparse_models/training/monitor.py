"""Receive progress and metrics of a training run."""

from __future__ import annotations

from typing import Any, Protocol

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.sparsity import Measurement

__all__ = ["Monitor", "SilentMonitor"]


class Monitor(Protocol):
    """Receives progress and metrics of a training run, in the first process only."""

    @property
    def progress(self) -> ProgressCallback:
        """Reports stages."""

    def record(self, record: dict[str, Any], steps: int) -> None:
        """Receive a training record: step of ``steps``, loss, lambda, perplexity, sparsity_by_layer, ..."""

    def evaluation(self, when: str, measurement: Measurement) -> None:
        """Receive a measurement on held-out text."""


class SilentMonitor:
    """Ignores everything: the monitor of all processes but the first."""

    progress: ProgressCallback = staticmethod(no_progress)

    def record(self, record: dict[str, Any], steps: int) -> None:
        """Ignore a training record."""

    def evaluation(self, when: str, measurement: Measurement) -> None:
        """Ignore a measurement."""
