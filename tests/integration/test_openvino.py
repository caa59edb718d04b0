"""Decomposed models in OpenVINO, which does not expand functions, in its own environment."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from support.environments import environment
from support.families import Family, family
from support.model_sizes import VOCAB, grouped
from support.onnx_text import D_FF, D_MODEL, model

from prosparse_export import ExportOptions, OptimizeOptions, export_model, optimize_file
from prosparse_export.export import decoder
from prosparse_export.export.file_hashes import FileHashes
from prosparse_export.export.rounded_reference import stored_formats, with_stored_weights
from prosparse_export.export.trace import Trace
from prosparse_export.progress import no_progress
from prosparse_models import Checkpoint, load_checkpoint

import onnx  # isort: skip

pytestmark = pytest.mark.integration
VERSION = "2026.4.1"
_CHILD = """
import sys
import numpy as np
import openvino
path, arrays = sys.argv[1:]
compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
results = compiled(dict(np.load(arrays)))
np.savez(arrays, **{name: results[port] for port in compiled.outputs for name in port.get_names()})
"""
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with OpenVINO, without our packages; kept between runs."""
    return environment(f"openvino-{VERSION}", [f"openvino=={VERSION}", "numpy"])


def openvino(python: Path, path: Path, inputs: Arrays) -> Arrays:
    """Outputs of ``path`` by name, from OpenVINO."""
    arrays = path.parent / "arrays.npz"
    np.savez(arrays, **inputs)  # type: ignore[arg-type]
    done = subprocess.run([str(python), "-c", _CHILD, path, arrays], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(arrays) as outputs:
        return dict(outputs)


WIDTHS = {"multiples of 32": (D_MODEL, D_FF), "other widths": (20, 45)}
GATE = "z = MatMul (x, w_gate)\nu = MatMul (x, w_up)\n{}\ny = MatMul (h, w_down)"
UP = "z = MatMul (x, w_up)\n{}\ny = MatMul (h, w_down)"
KINDS = {
    "gated relu": (GATE.format("a = Relu (z)\nh = Mul (a, u)"), "relu"),
    "gated fatrelu": (GATE.format("a = ThresholdedRelu <alpha = 0.1> (z)\nh = Mul (a, u)"), "fatrelu"),
    "drelu": (GATE.format("a = Relu (z)\nb = Relu (u)\nh = Mul (a, b)"), "drelu"),
    "fatrelu": (UP.format("h = ThresholdedRelu <alpha = 0.1> (z)"), "fatrelu"),
    "relu2": (UP.format("a = Relu (z)\nh = Mul (a, a)"), "relu2"),
}


def in_numpy(kind: str, x: NDArray[np.float64], arrays: Arrays) -> NDArray[np.float64]:
    """The FFN in float64."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}
    is_gated = kind.startswith("gated") or kind == "drelu"
    z = x @ w["w_gate" if is_gated else "w_up"]
    h: NDArray[np.float64] = np.where(z > (0.1 if "fatrelu" in kind else 0.0), z, 0.0)
    if is_gated:
        u = x @ w["w_up"]
        h = h * (np.maximum(u, 0.0) if kind == "drelu" else u)
    y: NDArray[np.float64] = (h * h if kind == "relu2" else h) @ w["w_down"]
    return y


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "i8", "i4", "nl4i8"])
@pytest.mark.parametrize("kind", KINDS)
def test_openvino_runs_decomposed_ffns(stored: str, kind: str, widths: str, python: Path, tmp_path: Path) -> None:
    nodes, activation = KINDS[kind]
    d_model, d_ff = WIDTHS[widths]
    rng = np.random.default_rng(1)
    shapes = {"w_gate": (d_model, d_ff), "w_up": (d_model, d_ff), "w_down": (d_ff, d_model)}
    arrays: Arrays = {k: (rng.standard_normal(v) / 8).astype(np.float32) for k, v in shapes.items()}
    proto = model(nodes, arrays, opset=20, x=f"float[b, s, {d_model}] x", y=f"float[b, s, {d_model}] y")
    onnx.save(proto, tmp_path / "in.onnx")
    options = OptimizeOptions(weights=stored, decomposed=True)  # type: ignore[arg-type]
    result = optimize_file(tmp_path / "in.onnx", tmp_path / "out" / "m.onnx", options)
    assert [(o.activation, o.d_model, o.d_ff) for o in result.rewritten] == [(activation, d_model, d_ff)]
    x = rng.standard_normal((2, 3, d_model)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    actual = openvino(python, result.path, {"x": x})["y"]
    assert actual.shape == expected.shape
    bound = 2 * (d_model + d_ff) * 2.0**-24 * max(1.0, float(np.abs(expected).max()))
    assert np.abs(actual - expected).max() <= bound
    exact = in_numpy(kind, x.astype(np.float64), arrays)
    if stored == "f32":
        assert np.abs(actual - exact).max() <= bound
    else:
        assert bound < np.abs(actual - exact).max() < 0.2 * np.abs(exact).max()  # rounded weights


def unaligned(folder: Path) -> None:
    """A LLaMA whose widths are not multiples of 32."""
    sizes = {**grouped(hidden_act="relu"), "hidden_size": 24, "intermediate_size": 44, "head_dim": 6}
    Family("", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes)), "", "").save(folder)


MODELS = [
    "LLaMA (ReluLLaMA)",
    "LLaMA with FATReLU (ProSparse-LLaMA-2)",
    "Bamboo, TurboSparse-Mistral (dReLU)",
    "Arcee AFM",
    "OPT",
    "unaligned",
]


STORED = [("unaligned", "f16"), ("unaligned", "i8"), ("LLaMA (ReluLLaMA)", "i8")]
IN_4_BITS = [(name, "i4") for name in ("unaligned", "LLaMA (ReluLLaMA)", "OPT")]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Checkpoint, Trace]]:
    """Return a function from a model's name to its folder, checkpoint and traced graph, made once."""

    @functools.cache
    def trace(name: str) -> tuple[Path, Checkpoint, Trace]:
        folder = tmp_path_factory.mktemp("model") / "m"
        if name == "unaligned":
            unaligned(folder)
        else:
            family(name).save(folder)
        checkpoint, found, _ = decoder._traced(folder, ExportOptions(), (), no_progress, FileHashes())
        assert checkpoint.weights is not None  # an export does not round what stays in its files
        return folder, checkpoint, found

    return trace


@pytest.mark.parametrize(("name", "stored"), [*((name, "f32") for name in MODELS), *STORED, *IN_4_BITS])
def test_openvino_runs_whole_models(
    name: str,
    stored: str,
    traced: Callable[[str], tuple[Path, Checkpoint, Trace]],
    python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two prompts, one left-padded; then one more token with the KV cache, as one graph of standard ONNX."""
    folder, checkpoint, found = traced(name)
    monkeypatch.setattr(decoder, "_traced", lambda *_: (checkpoint, replace(found, graph=found.graph.clone()), None))
    options = ExportOptions(decomposed=True, weights=stored)  # type: ignore[arg-type]
    result = export_model(folder, tmp_path / "out" / "m.onnx", options)
    assert len(result.rewritten) == 1
    reference = load_checkpoint(folder).model
    with_stored_weights(reference, stored_formats(result.manifest, result.path))
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 10))
    mask = np.ones_like(ids)
    mask[1, :4], ids[1, :4] = 0, 0
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        expected = reference(**{k: torch.from_numpy(v) for k, v in whole.items()}).logits.numpy()

    inputs = {value.name: value for value in onnx.load(result.path).graph.input}
    past: Arrays = {}
    for key in (key for key in inputs if key.startswith("past_key_values.")):
        dims = [dim.dim_value for dim in inputs[key].type.tensor_type.shape.dim]
        past[key] = np.zeros((2, dims[1], 0, dims[3]), np.float32)
    assert len(past) == 2
    found = []
    for part in (slice(0, 9), slice(9, 10)):
        feeds: Arrays = {"input_ids": ids[:, part], "attention_mask": mask[:, : part.stop]}
        feeds |= {"position_ids": positions[:, part], **past}
        outputs = openvino(python, result.path, {k: v for k, v in feeds.items() if k in inputs})
        found.append(outputs["logits"])
        past = {key: outputs[key.replace("past_key_values", "present")] for key in past}
    actual = np.concatenate(found, 1)
    size = max(1.0, float(np.abs(expected).max()))
    additions = 8 * 32 + 64 + ids.shape[1] + 32  # one layer, as rounding_bound of test_families.py counts them
    bound = 2 * additions * 2.0**-24 * size
    assert actual.shape == expected.shape
    assert np.abs(actual - expected)[mask == 1].max() <= bound
