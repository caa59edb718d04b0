"""`prosparse bench` on the demo: what it counts is right; no test says how fast it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from graph_passes.function_bodies import function_proto
from prosparse_export import ProSparseError, load
from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.analysis.graph_bytes import ffn_shape, initializer_bytes, other_bytes
from prosparse_export.analysis.roofline import predict
from prosparse_export.bench import BenchOptions, BenchResult, bench
from prosparse_export.bench.render import as_text
from prosparse_export.cli import main
from prosparse_export.text import default_text
from prosparse_models import find_ffns, load_checkpoint, measure
from prosparse_models.activation import FatReLU, set_drelu, set_ffn_activation
from prosparse_models.approximation import ThresholdedSilu

pytestmark = pytest.mark.integration
QUICK = BenchOptions(threads=1, context=8, tokens=2, prefill=(4,), rounds=3)
ACTIVATIONS = [("relu", 0.0), ("relu2", 0.0), ("fatrelu", 0.02), ("drelu", 0.0), ("silu", 0.05)]


def ids(artifact: Path) -> np.ndarray:
    tokenizer = load(artifact).tokenizer
    assert tokenizer is not None
    return np.asarray(tokenizer.encode(default_text()).ids[:64], np.int64)


def with_activation(artifact: Path, folder: Path, activation: str, threshold: float) -> Path:
    """A copy of the artifact whose operators have another activation, and the body stated for it."""
    shutil.copytree(artifact.parent, folder, dirs_exist_ok=True)
    model = onnx.load(folder / artifact.name, load_external_data=False)
    nodes = ffn_nodes(model)
    for node in nodes:
        changed = onnx.helper.make_node("x", [], [], activation=activation, threshold=threshold)
        del node.node.attribute[:]
        node.node.attribute.extend(changed.attribute)
    op = nodes[0].node.op_type
    next(f for f in model.functions if f.name == op).CopyFrom(function_proto(op, activation=activation))
    onnx.save(model, folder / artifact.name)
    manifest = json.loads((folder / "prosparse.json").read_text())
    del manifest["files"]  # the graph's digest
    (folder / "prosparse.json").write_text(json.dumps(manifest))
    return folder / artifact.name


class _Relu2(torch.nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.relu(z).square()


def set_activation(model: torch.nn.Module, activation: str, threshold: float) -> None:
    if activation == "drelu":
        set_drelu(model)
        return
    modules = {
        "relu": torch.nn.ReLU(),
        "relu2": _Relu2(),
        "fatrelu": FatReLU(threshold),
        "silu": ThresholdedSilu(threshold),
    }
    set_ffn_activation(model, modules[activation])


@pytest.mark.parametrize(("activation", "threshold"), ACTIVATIONS)
def test_sparsity_is_what_pytorch_measures(
    activation: str, threshold: float, demo_folder: Path, demo_artifact: Path, tmp_path: Path
) -> None:
    """For every activation, in bench and in `measure_activity`; the ceiling follows from the neurons skipped."""
    artifact = with_activation(demo_artifact, tmp_path, activation, threshold)
    tokens = ids(demo_artifact)
    found = bench(artifact, tokens, BenchOptions(1, context=8, tokens=1, prefill=(4,), rounds=3, dense=False))
    activity = measure_activity(artifact, [tokens])
    model = load_checkpoint(demo_folder).model
    set_activation(model, activation, threshold)
    expected = measure(model, find_ffns(model), [torch.from_numpy(tokens)])
    close = {"rtol": 0, "atol": 3e-4}  # a few pre-activations of 65,536 are within rounding of the threshold
    for layers in (found.layers, activity.layers):
        np.testing.assert_allclose([layer.sparsity for layer in layers], expected.sparsity_by_layer, **close)
        np.testing.assert_allclose([layer.skipped for layer in layers], expected.skipped_by_layer, **close)
    assert 0.05 < found.layers[0].skipped < 0.999
    if activation == "drelu":
        assert all(layer.skipped < layer.sparsity - 0.01 for layer in found.layers)
    for layer in found.layers:
        assert layer.ceiling == pytest.approx(3 / (1 + 2 * (1 - layer.skipped)))


@pytest.fixture(scope="module")
def result(demo_artifact: Path) -> BenchResult:
    return bench(demo_artifact, ids(demo_artifact), QUICK)


def test_bytes_and_ceiling(result: BenchResult, demo_artifact: Path) -> None:
    graph = read_graph(demo_artifact)
    shapes = [ffn_shape(graph, node, 0.5) for node in ffn_nodes(graph)]
    assert {(f.d_model, f.d_ff, f.gated, f.weights) for f in shapes} == {(256, 1024, True, "bf16")}
    stored = sum(f.dense_bytes for f in shapes) + other_bytes(graph, 0)
    data = demo_artifact.with_name(f"{demo_artifact.name}.data").stat().st_size
    cos_sin = sum(initializer_bytes(t) for t in graph.graph.initializer if t.name.startswith("prosparse.rotary_"))
    assert cos_sin == 2 * 2048 * 16 * 4  # of which a step reads a row
    data -= cos_sin
    assert 0.98 * data <= stored <= 1.02 * data  # the tied embedding is read by lm_head; all else is read too
    assert other_bytes(graph, 10) - other_bytes(graph, 0) == 10 * 5 * 2 * 2 * 32 * 4
    assert 1.0 < result.ceiling < 3.0
    skipped = [ffn_shape(graph, n, layer.skipped) for n, layer in zip(ffn_nodes(graph), result.layers, strict=True)]
    assert result.ceiling == pytest.approx(predict(skipped, other_bytes(graph, QUICK.context), 1e9).speedup)
    assert [(t.name, t.tokens) for t in result.timings] == [("decode", 8), ("prefill", 4)]
    assert all(t.sparse.median > 0 and t.ratio is not None for t in result.timings)
    assert all(layer.microseconds > 0 for layer in result.layers)
    assert "RotaryCachedAttentionF32" in result.other_microseconds
    assert "SparseGatedFFNBF16" not in result.other_microseconds


def test_command(demo_artifact: Path, tmp_path: Path) -> None:
    """Once in a separate process, where nothing else may write to stdout, then in this one."""
    arguments = ["bench", str(demo_artifact), "--context", "8", "--tokens", "2", "--prefill", "4", "--rounds", "3"]
    chart = ["--plot", str(tmp_path / "b.png")]
    process = [sys.executable, "-c", "from prosparse_export.cli import main; main()"]
    command = [*process, *arguments, "--no-dense", "--json", *chart]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else on stdout: progress goes to stderr
    assert "decode" in done.stderr
    assert result["reached"] is None
    assert [layer["module"] for layer in result["layers"]][-1] == "model.layers.4.mlp"
    loop = {name: spread["median"] for name, spread in result["loop"].items()}
    assert 0 < loop["outside_microseconds"] < loop["microseconds"]
    assert 0 < loop["outside_share"] < 1
    assert loop["unbound_ratio"] > 0
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(main, [*arguments, *chart])
    assert (again.exit_code, again.stderr.splitlines()[0][:15]) == (1, "error: output: ")
    wrong = CliRunner().invoke(main, [*arguments, "--plot", str(tmp_path / "b.gif")])
    assert (wrong.exit_code, wrong.stderr.splitlines()[0][:13]) == (1, "error: plot: ")


def test_table_with_and_without_a_dense_baseline(result: BenchResult) -> None:
    text = as_text(result)
    assert "model.layers.4.mlp" in text
    assert "dense baseline" in text
    assert "outside onnxruntime's call: " in text
    assert "of the maximum" in text
    alone = replace(result, reached=None, timings=tuple(replace(t, dense=None, ratio=None) for t in result.timings))
    assert "of the maximum" not in as_text(alone)


def test_bad_input(demo_artifact: Path) -> None:
    with pytest.raises(ProSparseError, match="context: expected at most 2048 tokens, got 4000"):
        bench(demo_artifact, ids(demo_artifact), BenchOptions(threads=1, prefill=(4000,), dense=False))
