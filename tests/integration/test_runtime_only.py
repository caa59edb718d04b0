"""prosparse-runtime: without the packages that it leaves out, artifacts run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.integration

# Run ``prosparse ARGUMENTS`` as if the packages were not installed.
RUN = """
import sys
class LeftOut:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {left_out!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, LeftOut())
sys.argv[0] = "prosparse"
from prosparse_export.cli import main
main()
"""


def left_out() -> set[str]:
    """Return the dependencies of prosparse-export that packaging/wheels.py leaves out of prosparse-runtime."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    kept = re.search(r"^RUNS_WITH = (\(.*?\))", (ROOT / "packaging" / "wheels.py").read_text(), re.MULTILINE)
    assert listed is not None
    assert kept is not None
    names = re.findall(r'^  "([\w-]+)', listed[1], re.MULTILINE)
    return {name.replace("-", "_") for name in names if name not in ast.literal_eval(kept[1])} - {"tomli"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN.format(left_out=sorted(left_out())), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_what_is_left_out() -> None:
    assert left_out() >= {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum"}


def test_generate_and_info(demo_artifact: Path) -> None:
    done = run("generate", demo_artifact, "The city of Paris is", "-n", 4, "--require-library")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The city of Paris is ")
    for arguments in ((), (demo_artifact, "--verify"), (demo_artifact, "--json")):
        done = run("info", *arguments)
        assert done.returncode == 0, done.stderr


def test_chat(demo_artifact: Path) -> None:
    done = run("chat", demo_artifact)
    assert "required package" not in done.stderr, done.stderr


def test_export_names_the_package_to_install() -> None:
    done = run("export", "models/demo", "m.onnx")
    assert done.returncode == 1
    assert "hint: prosparse-runtime runs artifacts only" in done.stderr
