"""One binary, many onnxruntimes: each release in its own environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.environments import environment

from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.runtime.operator_library import library_path

pytestmark = pytest.mark.integration
OLDEST_FOR_OPERATORS = "1.18.1"
OLDEST_FOR_FUSED_ATTENTION = "1.20.1"
# onnxruntime wheels exist for the Python versions of their time; 1.18 was built with numpy 1.
_REQUIREMENTS = {"1.17.3": ["numpy<2"], "1.18.1": ["numpy<2"], "1.20.1": ["numpy"]}

_CHILD = """
import sys
import numpy as np
import onnxruntime
library, model, arrays = sys.argv[1:4]
feeds = {k: v for k, v in np.load(arrays).items() if k != "expected"}
expected = np.load(arrays)["expected"]
assert onnxruntime.__version__ == sys.argv[4], onnxruntime.__version__
for use_library in (True, False):
    options = onnxruntime.SessionOptions()
    if use_library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if "input_ids" not in feeds:
        error = np.abs(session.run(None, feeds)[0] - expected).max()
    else:
        past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        errors = []
        # At once; most at once, then one by one; one row in two parts, the second after a cache, then one by one.
        for rows, parts in ((3, [40]), (3, [34, *[1] * 6]), (1, [20, 13, *[1] * 7])):
            cache = {v.name: np.zeros((rows, v.shape[1], 0, v.shape[3]), np.float32) for v in past}
            begin = 0
            for count in parts:
                here = {name: array[:rows, begin : begin + count] for name, array in feeds.items()}
                here["attention_mask"] = feeds["attention_mask"][:rows, : begin + count]
                actual, *present = session.run(None, {**here, **cache})
                cache = dict(zip(cache, present))
                real = feeds["attention_mask"][:rows, begin : begin + count] == 1
                difference = np.abs(actual - expected[:rows, begin : begin + count])[real]
                errors.append(difference.max(initial=0.0))
                begin += count
        error = np.max(errors)
    assert error <= 1e-3, error
    print("with" if use_library else "without", "library:", error)
"""


def runtime_python(version: str) -> Path:
    """An interpreter with onnxruntime ``version`` and nothing of ours; kept between runs."""
    try:
        return environment(version, [f"onnxruntime=={version}", *_REQUIREMENTS[version]])
    except RuntimeError as error:
        if "No matching distribution" not in str(error) or sys.version_info < (3, 13):
            raise
        pytest.skip(f"there is no onnxruntime {version} for Python {sys.version_info.major}.{sys.version_info.minor}")


def run(version: str, model: Path, arrays: Path) -> None:
    command = [str(runtime_python(version)), "-c", _CHILD, str(library_path()), str(model), str(arrays), version]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("library:") == 2


@pytest.fixture(scope="module")
def logits(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three left-padded rows and PyTorch's logits for them."""
    import torch

    from prosparse_models import load_checkpoint

    ids = np.random.default_rng(0).integers(3, 4000, (3, 40))
    mask = np.ones_like(ids)
    mask[1, :7], mask[2, :31] = 0, 0
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    with torch.no_grad():
        expected = load_checkpoint(demo_folder).model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        )
    path = tmp_path_factory.mktemp("logits") / "arrays.npz"
    arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    np.savez(path, expected=expected.logits.numpy(), **arrays)
    return path


def test_operators_on_the_oldest_onnxruntime(tmp_path: Path) -> None:
    from support.graphs import weights_model

    rng = np.random.default_rng(0)
    for op in ("SparseGatedFFNF32", "SparseFFNF32"):
        names = ["up", "down"] if op == "SparseFFNF32" else ["gate", "up", "down"]
        weights = {}
        for name in names:
            weights[f"w_{name}"] = (rng.standard_normal((100, 64)) / 8).astype(np.float32)
            weights[f"b_{name}"] = rng.standard_normal(64 if name == "down" else 100).astype(np.float32)
        x = rng.standard_normal((5, 64)).astype(np.float32)
        w = {k: v.astype(np.float64) for k, v in weights.items()}
        z = x @ w[f"w_{names[0]}"].T + w[f"b_{names[0]}"]
        h = np.where(z <= 0.5, 0.0, z)
        if len(names) == 3:
            h = h * (x @ w["w_up"].T + w["b_up"])
        np.savez(tmp_path / "arrays.npz", x=x, expected=h @ w["w_down"] + w["b_down"])
        onnx.save(weights_model(op, weights, 2, activation="fatrelu", threshold=0.5), tmp_path / "m.onnx")
        run(OLDEST_FOR_OPERATORS, tmp_path / "m.onnx", tmp_path / "arrays.npz")


def test_artifact_on_the_oldest_onnxruntime_for_its_attention(demo_artifact: Path, logits: Path) -> None:
    run(OLDEST_FOR_FUSED_ATTENTION, demo_artifact, logits)


def test_unfused_artifact_on_the_oldest_onnxruntime_for_the_operators(
    unfused_demo_artifact: Path, logits: Path
) -> None:
    assert require_manifest(unfused_demo_artifact).onnxruntime == ">=1.18"
    run(OLDEST_FOR_OPERATORS, unfused_demo_artifact, logits)


def test_an_onnxruntime_that_is_too_old_says_so() -> None:
    program = "import sys, onnxruntime; onnxruntime.SessionOptions().register_custom_ops_library(sys.argv[1])"
    command = [str(runtime_python("1.17.3")), "-c", program, str(library_path())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the com.prosparse operators need onnxruntime 1.18 or newer, got 1.17.3" in done.stderr
