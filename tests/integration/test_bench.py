"""`prosparse bench` on the demo: what it counts is right; how fast it is, no test says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prosparse_export import ProSparseError, load
from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.analysis.graph_bytes import ffn_shape, initializer_bytes, other_bytes
from prosparse_export.bench import BenchOptions, bench
from prosparse_export.validation import default_text

pytestmark = pytest.mark.integration
QUICK = BenchOptions(threads=1, context=8, tokens=2, prefill=(4,), rounds=3)


def ids(artifact: Path) -> np.ndarray:
    tokenizer = load(artifact).tokenizer
    assert tokenizer is not None
    return np.asarray(tokenizer.encode(default_text()).ids[:64], np.int64)


def test_sparsity_bytes_and_ceiling(demo_artifact: Path) -> None:
    result = bench(demo_artifact, ids(demo_artifact), QUICK)
    expected = measure_activity(demo_artifact, [ids(demo_artifact)])
    np.testing.assert_allclose(
        [layer.sparsity for layer in result.layers], [layer.sparsity for layer in expected.layers], atol=1e-3
    )
    graph = read_graph(demo_artifact)
    shapes = [ffn_shape(graph, node, 0.5) for node in ffn_nodes(graph)]
    assert {(f.d_model, f.d_ff, f.gated, f.weights) for f in shapes} == {(256, 1024, True, "bf16")}
    stored = sum(f.dense_bytes for f in shapes) + other_bytes(graph, 0)
    data = demo_artifact.with_name(f"{demo_artifact.name}.data").stat().st_size
    tables = sum(initializer_bytes(t) for t in graph.graph.initializer if t.name.startswith("prosparse.rotary_"))
    assert tables == 2 * 2048 * 16 * 4  # of which a step reads a row
    data -= tables
    assert 0.98 * data <= stored <= 1.02 * data  # the tied embedding is read by lm_head; all else is read too
    assert other_bytes(graph, 10) - other_bytes(graph, 0) == 10 * 5 * 2 * 2 * 32 * 4
    assert 1.0 < result.ceiling < 3.0
    assert [(t.name, t.tokens) for t in result.timings] == [("decode", 8), ("prefill", 4)]
    assert all(t.sparse.median > 0 and t.ratio is not None for t in result.timings)
    assert all(layer.microseconds > 0 for layer in result.layers)
    assert "GroupQueryAttention" in result.other_microseconds
    assert "SparseGatedFFNBF16" not in result.other_microseconds


def test_command(demo_artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from prosparse_export.cli import main; main()", "bench", str(demo_artifact), "-q"]
    quick = ["--context", "8", "--tokens", "2", "--prefill", "4", "--rounds", "3", "--no-dense"]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    done = subprocess.run([*command, *quick, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.layers.4.mlp" in done.stdout
    assert json.loads((tmp_path / "b.json").read_text())["reached"] is None
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    again = subprocess.run([*command, *quick, *files], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.splitlines()[0][:15]) == (1, "error: output: ")


def test_bad_input(demo_artifact: Path) -> None:
    with pytest.raises(ProSparseError, match="context: expected at most 2048 tokens, got 4000"):
        bench(demo_artifact, ids(demo_artifact), BenchOptions(threads=1, prefill=(4000,), dense=False))
