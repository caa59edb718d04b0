"""An interrupted export, in a separate process, leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.families import family

pytestmark = pytest.mark.integration
# Writing and checking a tiny model take milliseconds: hold them, so that the signal arrives in time.
_SLOW = """
import time
from prosparse_export.export import export
def slow(real):
    def held(*arguments, **options):
        time.sleep(20)
        return real(*arguments, **options)
    return held
export.write_artifact = slow(export.write_artifact)
export.check_logits = slow(export.check_logits)
from prosparse_export.cli import export_command
export_command()
"""


@pytest.mark.parametrize(
    ("stage", "name"),
    [("load", "SIGTERM"), ("trace", "SIGINT"), ("trace", "SIGTERM"), ("write", "SIGINT"), ("check", "SIGTERM")],
)
def test_interruption_leaves_nothing(name: str, stage: str, tmp_path: Path) -> None:
    family("LLaMA (ReluLLaMA)").save(tmp_path / "model")
    output = tmp_path / "out" / "m.onnx"
    command = [sys.executable, "-c", _SLOW, str(tmp_path / "model"), str(output)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.partition("] ")[2].split(",")[0].strip() == stage:
            break
    else:
        pytest.fail(f"stage {stage} was never reported")
    time.sleep(0.5)  # well into it
    child.send_signal(getattr(signal, name))
    rest = child.stderr.read()
    assert child.wait() != 0
    assert "Traceback" not in rest
    assert not output.exists()
    assert not output.parent.exists()
