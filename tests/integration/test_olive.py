"""Olive: a whole `olive run` with our passes, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import DEMO
from test_exporters import interpreter

from prosparse_export import load
from prosparse_export.artifact.integrity import check_files
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.platforms import this_platform

pytestmark = pytest.mark.integration
PROMPT, COUNT = [1, 5, 9], 12
# Without their dependencies, which are ours, or which these passes need not.
OLIVE = (
    "olive-ai==0.13.0",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-api==1.45.2",
    "opentelemetry-semantic-conventions==0.66b2",
    "torchmetrics==1.9.0",
    "lightning-utilities==0.15.3",
    "optuna==5.0.0",
    "colorlog==6.12.0",
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Olive's Python in ``folder``."""
    environment = {**os.environ, "CI": "1"}  # no telemetry
    command = [str(interpreter(OLIVE)), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    done = run(folder, "-m", "prosparse_export.integrations.olive_passes", "package.json")
    assert done.returncode == 0, done.stderr
    return folder / "package.json"


def olive_run(folder: Path, package: Path, passes: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Run a workflow on the demo model into ``folder``/out."""
    config = {"input_model": {"type": "HfModel", "model_path": str(DEMO)}, "passes": passes, "output_dir": "out"}
    (folder / "workflow.json").write_text(json.dumps(config))
    return run(folder, "-m", "olive", "run", "--config", "workflow.json", "--package-config", str(package))


def test_both_passes_in_one_workflow(demo_artifact: Path, package: Path, tmp_path: Path) -> None:
    passes: dict[str, object] = {
        "export": {"type": "ProSparseExport", "decomposed": True},
        "optimize": {"type": "ProSparseOptimize", "libraries": "this"},
    }
    done = olive_run(tmp_path, package, passes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("5 FFNs rewritten, 0 not rewritten") == 2, done.stdout
    graph = tmp_path / "out" / "model.onnx"
    assert check_files(graph, verify=True) > 0
    assert (graph.parent / library_in_artifact(this_platform())).is_file()
    assert (graph.parent / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()
    expected = [int(step[0]) for step in load(demo_artifact).stream([PROMPT], max_new_tokens=COUNT)]
    assert [int(step[0]) for step in load(graph).stream([PROMPT], max_new_tokens=COUNT)] == expected


def test_a_wrong_value_ends_the_workflow_with_our_message(package: Path, tmp_path: Path) -> None:
    done = olive_run(tmp_path, package, {"export": {"type": "ProSparseExport", "weights": "i3"}})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: Invalid value for '--weights': 'i3' is not one of")
    assert not (tmp_path / "out" / "model.onnx").exists()
