"""`prosparse generate --help` answers at once: the command line imports a stage's packages only when it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

RUN = """
import sys
from prosparse_export.cli import main
main({arguments!r}, standalone_mode=False)
import json
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
SLOW = {"graph_passes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "prosparse_models", "tokenizers"}
SLOW |= {"httpx2", "huggingface_hub", "matplotlib", "optimum", "starlette", "torch", "transformers"}


def imported(*arguments: str) -> set[str]:
    """Return the packages that a new interpreter imports to run ``prosparse ARGUMENTS``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN.format(arguments=list(arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "Usage: " in done.stdout
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_of_generate_imports_nothing_slow() -> None:
    assert imported("generate", "--help") & SLOW == set()
