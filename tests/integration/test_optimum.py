"""optimum: `optimum-cli export prosparse`, and the folder in optimum-onnx's ORTModelForCausalLM."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import DEMO, ROOT
from test_exporters import OPTIMUM, interpreter

from prosparse_export import load
from prosparse_export.runtime.operator_library import library_path

pytestmark = pytest.mark.integration
PROMPT, COUNT = [1, 5, 9], 12
LOADER = ROOT / "tests" / "producers" / "load_in_optimum.py"


def optimum_cli(*words: object) -> subprocess.CompletedProcess[str]:
    """Run optimum-cli with our registration: the installed one, else this checkout's (both at once would collide)."""
    installed = importlib.util.find_spec("optimum.commands.register.register_prosparse") is not None
    ours = [] if installed else [str(ROOT / "packaging" / "namespace")]
    paths = [*ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [str(Path(sysconfig.get_path("scripts")) / "optimum-cli"), "export", "prosparse", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum") / "out"
    done = optimum_cli("--model", DEMO, folder, "--task", "causal-lm-with-past", "--libraries", "none", "-q")
    assert done.returncode == 0, done.stderr
    assert "5 FFNs rewritten, 0 not rewritten" in done.stdout
    return folder


@pytest.mark.parametrize("library", [True, False])
def test_the_folder_in_ort_model_for_causal_lm(library: bool, exported: Path) -> None:
    expected = [int(step[0]) for step in load(exported / "model.onnx").stream([PROMPT], max_new_tokens=COUNT)]
    words = [str(exported), str(library_path()) if library else "none", str(COUNT), *map(str, PROMPT)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(interpreter(OPTIMUM)), str(LOADER), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [*map(int, done.stdout.split())] == expected


def test_another_task_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = optimum_cli("--model", DEMO, tmp_path / "out", "--task", "fill-mask")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: task: expected text-generation-with-past, got fill-mask",
        "hint: omit --task, or pass --task text-generation-with-past",
    ]
    assert not (tmp_path / "out").exists()


def test_a_value_that_the_export_does_not_know_is_a_usage_error(tmp_path: Path) -> None:
    done = optimum_cli("--model", DEMO, tmp_path / "out", "--weights", "i3")
    assert done.returncode == 2
    assert "'i3' is not one of" in done.stderr
    assert sys.executable not in done.stderr  # no traceback
    assert "Traceback" not in done.stderr
