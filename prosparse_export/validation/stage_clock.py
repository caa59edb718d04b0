"""Wall time by stage, measured from the progress that a validation reports."""

from __future__ import annotations

import time

from prosparse_export.progress import ProgressCallback

__all__ = ["StageClock"]


class StageClock:
    """A `ProgressCallback` that forwards to another one and adds up each stage's time.

    Attributes:
        seconds: wall time by stage name, for the stages that have ended.
    """

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress, self._stage, self._began = progress, "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """Report progress; a new stage name ends the previous stage."""
        if stage != self._stage:
            now = time.perf_counter()
            if self._stage:
                self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._began, 3)
            self._stage, self._began = stage, now
        self._progress(stage, done, total, detail)
