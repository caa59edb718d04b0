"""A training run on stderr, where there is no terminal: stages, records and evaluations."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from prosparse_export.cli.training_display import TrainingDisplay


def test_records_and_evaluations_are_lines() -> None:
    stream, stages = io.StringIO(), []
    display = TrainingDisplay(lambda *call: stages.append(call), Console(file=stream, width=40))
    display.progress("load model", 0, 0)
    record = {"step": 10, "loss": 2.5, "lambda": 1e-3, "perplexity": 12.0}
    display.record(record, 40)
    display.record({**record, "step": 20, "sparsity": 0.5, "sparsity_by_layer": [0.25] * 13}, 40)
    measurement: Any = SimpleNamespace(
        perplexity=9.0, sparsity=0.5, dead_by_layer=(1, 2), always_on_by_layer=(3, 4), d_ff=(16, 16)
    )
    display.evaluation("stage 0", measurement)
    assert stages == [("load model", 0, 0, ""), ("train", 10, 40), ("train", 20, 40)]
    layers = " ".join(["25"] * 12) + " ..."
    assert stream.getvalue().splitlines() == [
        "step 10/40  loss 2.5000  lambda 1.000e-03  perplexity 12.00",
        f"step 20/40  loss 2.5000  lambda 1.000e-03  perplexity 12.00  sparsity 50.0% ({layers})",
        "held-out text, stage 0: perplexity 9.00, sparsity 50.00%, dead 3, always on 7 of 32 neurons",
    ]
