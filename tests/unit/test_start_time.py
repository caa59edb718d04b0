"""`prosparse generate --help` answers at once: the command line imports a stage's packages only when it runs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pytest

RUN = """
import sys
from prosparse_export.cli import main
main({arguments!r}, standalone_mode=False)
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""
SLOW = {"graph_passes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "prosparse_models", "tokenizers"}
SLOW |= {"httpx2", "huggingface_hub", "matplotlib", "optimum", "starlette", "torch", "transformers"}


def run(*arguments: str) -> tuple[float, set[str]]:
    """Return the CPU seconds of a new interpreter that runs ``prosparse ARGUMENTS``, and what it imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN.format(arguments=list(arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "Usage: " in done.stdout
    seconds, imported = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(imported)


@pytest.mark.skipif(sys.platform == "win32", reason="no module resource")
def test_help_of_generate_answers_within_half_a_second() -> None:
    runs = [run("generate", "--help") for _ in range(3)]
    assert runs[0][1] & SLOW == set()
    assert statistics.median(seconds for seconds, _ in runs) < 0.5
