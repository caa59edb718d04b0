"""Fixtures that more than one ring uses."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "models" / "demo"
COMMAND = [str(Path(sysconfig.get_path("scripts")) / "prosparse-export")]  # what a user types


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported by the command line in a process of its own."""
    output = tmp_path_factory.mktemp("demo") / "demo.onnx"
    subprocess.run([*COMMAND, str(DEMO), str(output), "-q"], check=True)
    return output


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``prosparse-export ARGUMENTS`` as a user would."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]

    return run
