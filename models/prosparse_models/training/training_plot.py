"""Plot a training run: lambda, loss and sparsity per layer over steps."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from prosparse_export.atomic_write import atomic_write

__all__ = ["plot_training"]


def plot_training(records: Sequence[dict[str, Any]], marks: Sequence[int], path: Path) -> None:
    """Write a PNG with three panels over the optimizer steps; dashed lines mark the ends of stages.

    Args:
        records: from `ProSparseTrainer`, each with step, lambda, cross_entropy, sparsity_by_layer.
        marks: last steps of the stages.
        path: the PNG.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    steps = [record["step"] for record in records]
    top.plot(steps, [record["lambda"] for record in records], color="tab:red")
    top.set_ylabel("lambda")
    middle.plot(steps, [record["cross_entropy"] for record in records], color="tab:blue")
    middle.set_ylabel("cross entropy (nats per token)")
    counted = [record for record in records if "sparsity_by_layer" in record]
    layers = len(counted[0]["sparsity_by_layer"]) if counted else 0
    for layer in range(layers):
        shade = 0.85 * layer / max(1, layers - 1)
        bottom.plot(
            [record["step"] for record in counted],
            [100 * record["sparsity_by_layer"][layer] for record in counted],
            color=(shade, 0.3, 0.85 - shade),
            linewidth=1,
            label=f"layer {layer}" if layers <= 8 or layer in (0, layers - 1) else None,
        )
    bottom.set_ylabel("activation sparsity (%)")
    bottom.set_xlabel("optimizer step")
    bottom.set_ylim(0, 100)
    if layers:
        bottom.legend(loc="lower right")
    for axes in (top, middle, bottom):
        for mark in marks:
            axes.axvline(mark, color="0.8", linestyle="--", linewidth=0.8, zorder=0)
    image = BytesIO()
    figure.savefig(image, dpi=110, format="png")
    atomic_write(path, image.getvalue())
