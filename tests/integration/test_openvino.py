"""The plain form in OpenVINO, which expands no functions, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT
from foreign_graphs import D_FF, D_MODEL, GATED, PLAIN, model

from prosparse_export import OptimizeOptions, optimize_file

import onnx  # isort: skip

pytestmark = pytest.mark.integration
VERSION = "2026.4.1"
_CHILD = """
import sys
import numpy as np
import openvino
path, arrays = sys.argv[1:]
compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(arrays, compiled(np.load(arrays))[0])
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with OpenVINO and nothing of ours; kept between runs."""
    folder = ROOT / ".venv" / "runtimes" / f"openvino-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    interpreter = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(interpreter), "-m", "pip", "install", "-q", f"openvino=={VERSION}", "numpy"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / "ready").touch()
    return interpreter


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "i8", "i4", "i4i8"])
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_openvino_runs_the_plain_form(stored: str, kind: str, python: Path, tmp_path: Path) -> None:
    nodes = GATED if kind == "gated" else PLAIN.format("ThresholdedRelu <alpha = 0.1> (z)")
    onnx.save(model(nodes, opset=20), tmp_path / "in.onnx")
    options = OptimizeOptions(weights=stored, plain=True)  # type: ignore[arg-type]
    path = optimize_file(tmp_path / "in.onnx", tmp_path / "out" / "m.onnx", options).path
    x = np.random.default_rng(0).standard_normal((2, 3, D_MODEL)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.save(tmp_path / "x.npy", x)
    command = [str(python), "-c", _CHILD, str(path), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    actual = np.load(tmp_path / "x.npy")
    assert actual.shape == expected.shape
    bound = 2 * (D_MODEL + D_FF) * 2.0**-24 * max(1.0, float(np.abs(expected).max()))
    assert np.abs(actual - expected).max() <= bound
    assert np.abs(actual - x).max() > 0.01
