"""Progress of training on stderr: a bar and one line per record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from prosparse_models import Measurement

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """A `prosparse_models.Monitor` for people.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._began = time.monotonic()
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task: Any = None
        self._first: tuple[float, int] | None = None

    def status(self, text: str) -> None:
        """Show what is being done now."""
        self._line(text)

    def record(self, record: dict[str, Any], steps: int) -> None:
        """Show a training record."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("train", total=steps)
        self._bar.update(self._task, completed=record["step"])
        layers = record.get("sparsity_by_layer") or []
        shown = ""
        if layers:
            values = " ".join(f"{100 * s:.0f}" for s in layers[:12]) + (" ..." if len(layers) > 12 else "")
            shown = f"  sparsity {100 * record['sparsity']:.1f} % ({values})"
        self._line(
            f"step {record['step']}/{steps}  loss {record['loss']:.4f}  lambda {record['lambda']:.3e}  "
            f"perplexity {record['perplexity']:.2f}{shown}{self._left(record['step'], steps)}"
        )
        if record["step"] >= steps:
            self.stop()

    def evaluation(self, when: str, measurement: Measurement) -> None:
        """Show what was measured on held-out text."""
        self._line(
            f"held out, {when}: perplexity {measurement.perplexity:.2f}, sparsity {100 * measurement.sparsity:.2f} %, "
            f"dead {sum(measurement.dead_by_layer)}, always on {sum(measurement.always_on_by_layer)} "
            f"of {sum(measurement.d_ff)} neurons"
        )

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _left(self, step: int, steps: int) -> str:
        """Return how long it will take where no bar says so, from the second record on."""
        now = time.monotonic()
        if self._first is None or self._console.is_terminal or step <= self._first[1]:
            self._first = self._first or (now, step)
            return ""
        seconds = (now - self._first[0]) / (step - self._first[1]) * (steps - step)
        return f"  about {seconds / 60:.0f} min left" if seconds >= 90 else f"  about {seconds:.0f} s left"

    def _line(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began:7.1f} s] {text}", markup=False, soft_wrap=True)
