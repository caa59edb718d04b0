"""One progress protocol: every callable that a function takes as ``progress`` follows it."""

from __future__ import annotations

import ast

import torch
from conftest import ROOT
from support.training_models import LLAMA, build
from transformers import LlamaConfig

from prosparse_models import find_ffns, measure, substitute_activation
from prosparse_models.approximation import silu_thresholds
from prosparse_models.training.distillation import recover_layers
from prosparse_models.training.monitor import SilentMonitor

FOLDERS = (ROOT / "prosparse_export", ROOT / "models" / "prosparse_models")
ROWS = [torch.randint(3, 259, (9,), generator=torch.Generator().manual_seed(k)) for k in range(3)]


class Calls(list[tuple[str, int, int]]):
    """Keeps what it is called with."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        self.append((stage, done, total))


def test_no_function_takes_another_callable() -> None:
    found = []
    for path in (path for folder in FOLDERS for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                found += [
                    (path.name, ast.unparse(a.annotation)) for a in arguments if a.arg == "progress" and a.annotation
                ]
    assert len(found) > 20
    assert [entry for entry in found if entry[1] != "ProgressCallback"] == []


def test_measuring_reports_its_stage() -> None:
    model = build(LlamaConfig(**LLAMA))
    calls = Calls()
    measure(model, find_ffns(model), ROWS, batch=2, stage="before", progress=calls)
    assert calls == [("before", 2, 3), ("before", 3, 3)]


def test_thresholds_report_each_row() -> None:
    model = build(LlamaConfig(**LLAMA))
    calls = Calls()
    silu_thresholds(model, find_ffns(model), ROWS, 0.5, calls)
    assert calls == [("calibrate", k, 3) for k in range(3)]


def test_layer_recovery_reports_the_error_ten_times() -> None:
    teacher, model = build(LlamaConfig(**LLAMA)), build(LlamaConfig(**LLAMA))
    ffns = find_ffns(model)
    substitute_activation(model, ffns, "relu")
    calls = Calls()
    batches = iter([{"input_ids": ROWS[0][None]}] * 20)
    device = torch.device("cpu")
    error = recover_layers(
        teacher, find_ffns(teacher), ffns, batches, steps=20, learning_rate=1e-3, device=device, progress=calls
    )
    assert len(calls) == 10
    assert calls[0][0].startswith("layer recovery, step 2 of 20: relative squared error ")
    assert calls[-1] == (f"layer recovery, step 20 of 20: relative squared error {error:.4f}", 0, 0)


def test_other_processes_report_nothing() -> None:
    SilentMonitor().progress("stage", 1, 2, "detail")
