"""How long a command with known stages will take in all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["TimeLeft", "export_seconds"]


class TimeLeft:
    """Estimate the seconds left of a command, from those that its stages took elsewhere.

    The stages that are over say how much slower this machine is; a stage that counts its work says itself how much of
    it is left. A stage that is not among the expected ones counts only while it runs.

    Args:
        expected: seconds by stage, in order.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = dict(expected)
        self._after = list(expected)  # stages that have not begun
        self._stage = ""
        self._began = 0.0
        self._spent = self._planned = 0.0  # of the expected stages that are over
        self._base = (0.0, 0, 0)  # the current count: when it began, what was done then, and its total

    def __call__(self, now: float, stage: str, done: int, total: int) -> float:
        """Return the seconds left.

        Args:
            now: seconds since the command began.
            stage: the current stage.
            done: its units of work finished.
            total: its units of work; 0 if unknown.
        """
        if stage != self._stage:
            self._begin(now, stage)
        if total != self._base[2] or done < self._base[1]:
            self._base = (now, done, total)
        pace = self._spent / self._planned if self._planned else 1.0
        left = max(0.0, self._expected.get(stage, 0.0) * pace - (now - self._began))
        began, before, _ = self._base
        if total and done > before:
            left = (now - began) * (total - done) / (done - before)
        return left + pace * sum(self._expected[other] for other in self._after)

    def _begin(self, now: float, stage: str) -> None:
        if self._stage in self._expected:
            self._spent += now - self._began
            self._planned += self._expected[self._stage]
        self._stage, self._began, self._base = stage, now, (now, 0, 0)
        if stage in self._after:
            self._after = self._after[self._after.index(stage) + 1 :]


def export_seconds(
    model_dir: Path, *, measures_inputs: bool, profiles: bool = False, compensates: bool = False, budgets: bool = False
) -> dict[str, float]:
    """Return about how long each stage of an export takes on two cores of a Zen 3.

    Args:
        model_dir: the model folder; its safetensors files' bytes decide.
        measures_inputs: whether matrices are stored as integers, for which the model runs on text.
        profiles: activation sparsity is measured.
        compensates: rounding is compensated.
        budgets: formats are chosen for a size or a perplexity.
    """
    size = sum(path.stat().st_size for path in model_dir.glob("*.safetensors")) / 1e9
    text = {
        "profile": min(50 * size, 60.0) if profiles else 0.0,  # the text gets shorter as models grow
        "measure inputs": (40 * size if compensates else min(10 * size, 60.0)) if measures_inputs else 0.0,
        "measure formats": 100 * size if budgets else 0.0,
        "round": 100 * size if compensates else 0.0,
    }
    return {
        "start": 5.0,
        "load": 0.5 + 2 * size,
        "trace": 6.0,
        **{stage: seconds for stage, seconds in text.items() if seconds},
        "rewrite": 0.2 + size,
        "write": 0.1 + 4 * size,
        "check": 0.7 + 6 * size,
        "publish": 0.5 + 2 * size,
    }
