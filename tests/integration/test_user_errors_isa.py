"""User errors, PROSPARSE_ISA: a variant that cannot run here is reported before minutes of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from prosparse_export import ProSparseError, export_model, optimize_file, register
from prosparse_export.bench import bench
from prosparse_export.report import measure
from prosparse_export.validation import validate

pytestmark = pytest.mark.integration


def test_every_stage_checks_first(
    demo_folder: Path, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROSPARSE_ISA", "sse9")
    texts = [("text", "a text")]
    jobs: list[Callable[[Callable[..., None]], object]] = [
        lambda progress: export_model(demo_folder, tmp_path / "m.onnx", progress=progress),
        lambda progress: optimize_file(demo_artifact, tmp_path / "o.onnx", progress=progress),
        lambda progress: validate(demo_folder, demo_artifact, progress=progress),
        lambda progress: measure(demo_artifact, texts, progress=progress),
        lambda progress: bench(demo_artifact, np.arange(8), progress=progress),
    ]
    for job in jobs:
        stages: list[str] = []
        with pytest.raises(ProSparseError, match="PROSPARSE_ISA=sse9 cannot run here") as caught:
            job(lambda stage, *_: stages.append(stage))  # noqa: B023
        assert caught.value.hint is not None
        assert "unset PROSPARSE_ISA" in caught.value.hint
        assert stages == []


def test_registering_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSPARSE_ISA", "sse9")
    with pytest.raises(ProSparseError, match="PROSPARSE_ISA=sse9 cannot run here") as caught:
        register(onnxruntime.SessionOptions())
    assert caught.value.hint is not None
    assert "unset PROSPARSE_ISA" in caught.value.hint
