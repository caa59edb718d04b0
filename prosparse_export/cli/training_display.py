"""Display a training run on stderr: stages, and a line per record and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prosparse_export.cli.display import stages
from prosparse_export.progress import ProgressCallback

if TYPE_CHECKING:
    from prosparse_models import Measurement

__all__ = ["TrainingDisplay", "training_display"]


@contextmanager
def training_display(*, quiet: bool) -> Iterator[TrainingDisplay]:
    """Yield a `prosparse_models.training.monitor.Monitor` that displays the run; silent if ``quiet``."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    with stages(quiet=quiet, console=console) as progress:
        yield TrainingDisplay(progress, console)


class TrainingDisplay:
    """Prints records and evaluations between the stages of ``progress``.

    Args:
        progress: displays stages and the steps done.
        console: prints the lines.
    """

    def __init__(self, progress: ProgressCallback, console: Console) -> None:
        self._progress, self._console = progress, console

    def progress(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Display progress; see `ProgressCallback`."""
        self._progress(stage, done, total, detail)

    def record(self, record: dict[str, Any], steps: int) -> None:
        """Display a training record, and its step as progress."""
        self._progress("train", record["step"], steps)
        layers = record.get("sparsity_by_layer") or []
        shown = ""
        if layers:
            values = " ".join(f"{100 * s:.0f}" for s in layers[:12]) + (" ..." if len(layers) > 12 else "")
            shown = f"  sparsity {100 * record['sparsity']:.1f}% ({values})"
        self._line(
            f"step {record['step']}/{steps}  loss {record['loss']:.4f}  lambda {record['lambda']:.3e}  "
            f"perplexity {record['perplexity']:.2f}{shown}"
        )

    def evaluation(self, when: str, measurement: Measurement) -> None:
        """Display a measurement on held-out text."""
        self._line(
            f"held-out text, {when}: perplexity {measurement.perplexity:.2f}, "
            f"sparsity {100 * measurement.sparsity:.2f}%, dead {sum(measurement.dead_by_layer)}, "
            f"always on {sum(measurement.always_on_by_layer)} of {sum(measurement.d_ff)} neurons"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
