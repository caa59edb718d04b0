"""``--kv-cache i8`` and ``i8-token`` on the demo: PyTorch with a rounded cache, batches, chunks, memory, errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Literal

import httpx2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import DEMO
from numpy.typing import NDArray
from onnx import numpy_helper
from support.server import serving

from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.analysis.cache_scales import cache_scales
from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.analysis.graph_bytes import other_bytes
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.bench import BenchOptions, bench
from prosparse_export.export.rounded_cache import RoundedCache, cache_rounding
from prosparse_export.export.rounded_reference import format_bound
from prosparse_export.report import ReportOptions, measure
from prosparse_export.report.page import render_page
from prosparse_export.runtime import session
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import default_text
from prosparse_export.validation import ValidationOptions, validate
from prosparse_export.validation.exactness import generate_greedily, pad_left
from prosparse_models import cache_argument, load_checkpoint

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 27), reason="needs onnxruntime 1.27"
    ),
]
NEW = 24


@pytest.fixture(scope="module", params=["i8", "i8-token"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(kind: Literal["i8", "i8-token"], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("i8") / "demo.onnx"
    return export_model(DEMO, output, ExportOptions(kv_cache=kind)).path


@pytest.fixture(scope="module")
def model(path: Path) -> SparseModel:
    return load(path, threads=1)


def pytorch(path: Path, ids: list[int]) -> tuple[NDArray[np.float32], float]:
    """PyTorch's logits with a rounded cache, and the bound on a logit's difference."""
    scales = cache_scales(read_graph(path), path.parent)
    model = load_checkpoint(DEMO).model
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), **cache_argument(model, RoundedCache(scales)), use_cache=True)
        own = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    logits = found.logits[0].numpy()
    return logits, format_bound({}, float(np.abs(logits).max())) + cache_rounding(logits, own)


def texts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 4096, length).tolist() for length in lengths]


def test_the_manifest_says_so(path: Path, kind: str) -> None:
    manifest = require_manifest(path)
    assert manifest.onnxruntime == (">=1.27" if kind == "i8" else ">=1.20")
    assert manifest.kv_cache is not None
    per = "channel" if kind == "i8" else "token"
    assert (manifest.kv_cache.format, manifest.kv_cache.scale_per, manifest.kv_cache.layers) == (kind, per, 5)
    assert manifest.fused_attention
    types = {value.name: value.type for value in load(path).session.get_inputs()}
    assert types["past_key_values.0.key"] == "tensor(int8)"


@pytest.mark.parametrize("library", [True, False])
def test_logits_equal_pytorchs_with_a_rounded_cache(path: Path, library: bool) -> None:
    (ids,) = texts(90)
    expected, bound = pytorch(path, ids)
    model = load(path, threads=1, library=library)
    whole, _ = model.forward(np.array([ids]), np.ones((1, 90), np.int64))
    assert np.abs(whole[0] - expected).max() <= bound
    decoder = model.decoder(1, 90)
    steps = [decoder.prefill(np.array([ids[:70]]), np.ones((1, 70), np.int64))[0].copy()]
    steps += [decoder.step(np.array([token]))[0].copy() for token in ids[70:-1]]
    assert np.abs(np.stack(steps) - expected[69:-1]).max() <= bound
    typical = np.abs(whole[0] - expected).mean()  # entries on another level are few, and none in most runs
    assert typical <= bound / 50


def test_batches_and_chunks(model: SparseModel, path: Path) -> None:
    prompts = texts(PREFILL_TOKENS + 90, 40, PREFILL_TOKENS + 3)
    together = generate_greedily(model, [np.array(prompt) for prompt in prompts], NEW)
    alone = [generate_greedily(model, [np.array(prompt)], NEW)[0] for prompt in prompts]
    np.testing.assert_array_equal(together, alone)
    ids, mask = pad_left([np.array(prompt) for prompt in texts(30, 21)])
    padded, _ = model.forward(ids, mask)
    for row, prompt in enumerate(texts(30, 21)):
        expected, bound = pytorch(path, prompt)
        assert np.abs(padded[row, -len(prompt) :] - expected).max() <= bound


def test_bytes_of_a_token(model: SparseModel, demo_artifact: Path, kind: str) -> None:
    ids, mask = np.array(texts(9)), np.ones((1, 9), np.int64)
    sizes = [
        sum(array.nbytes for array in one.forward(ids, mask)[1].values.values())
        for one in (model, load(demo_artifact, threads=1))
    ]
    assert 4 * sizes[0] == sizes[1] * (1 if kind == "i8" else 34 / 32)


def test_validate(path: Path) -> None:
    result = validate(DEMO, path, ValidationOptions(tokens=512, greedy=16, step_tokens=64, operator_tokens=32))
    assert result.passed, [check for check in result.checks if not check.passed]
    assert result.lossy
    assert result.exact_against == "PyTorch with the stored weights, KV cache rounded to 8 bits"
    assert abs(result.quality[1].perplexity_increase) < 1e-3


def test_report_counts_as_without_rounding(path: Path, demo_artifact: Path) -> None:
    text = [("text", default_text()[:4000])]
    found, expected = (measure(artifact, text, ReportOptions(300, 64)) for artifact in (path, demo_artifact))
    assert found.tokens == expected.tokens == 300
    for own, float32 in zip(found.layers, expected.layers, strict=True):
        assert own.sparsity == pytest.approx(float32.sparsity, abs=2e-3)  # activations near zero change sides
        assert own.speed is not None
    assert render_page(found).count("<svg") == render_page(expected).count("<svg")


def test_bench_measures_attention_and_its_bytes(path: Path, kind: str, demo_artifact: Path) -> None:
    options = BenchOptions(threads=1, context=300, tokens=2, prefill=(4,), rounds=3)
    (ids,) = texts(64)
    result = bench(path, np.array(ids), options)
    operator = "GroupQueryAttention" if kind == "i8" else "RotaryCachedAttentionI8"
    assert result.other_microseconds[operator] > 0
    assert all(timing.sparse.median > 0 and timing.ratio is not None for timing in result.timings)
    graphs = [read_graph(artifact) for artifact in (path, demo_artifact)]
    quarter, whole = (other_bytes(graph, 300) - other_bytes(graph, 0) for graph in graphs)
    assert 4 * quarter == whole * (1 if kind == "i8" else 34 / 32)


def test_a_server_writes_the_same_texts(path: Path, model: SparseModel) -> None:
    """Rows of different lengths, and prompts whose beginning comes from the prefix cache."""
    prompts = [
        "The river flows through the old town and " * 9,
        "The river flows through the old town and " * 8,
        "Water",
    ]
    texts = [model.generate(prompt, max_new_tokens=NEW) for prompt in prompts]

    def ask(prompt: str) -> str:
        body = {"model": "demo", "prompt": prompt, "max_tokens": NEW, "temperature": 0}
        answer = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        return str(answer["choices"][0]["text"])

    with serving(path, "--max-batch", 3) as server, ThreadPoolExecutor(3) as pool:
        assert [list(pool.map(ask, prompts)) for _ in range(2)] == [texts, texts]


def test_a_wrong_scale_is_found(path: Path, kind: str, tmp_path: Path) -> None:
    """Values of layer 2 stored with a scale that clips them; scores of layer 2 without their scale."""
    proto = read_graph(path)
    if kind == "i8-token":
        node = [node for node in proto.graph.node if node.op_type == "RotaryCachedAttentionI8"][2]
        next(attribute for attribute in node.attribute if attribute.name == "scale").f = 0.17
    else:
        _clip_values(proto)
    shutil.copytree(path.parent, tmp_path / "broken")
    broken_path = tmp_path / "broken" / path.name
    onnx.save(proto, broken_path)
    (ids,) = texts(60)
    broken = load(broken_path, threads=1).forward(np.array([ids]), np.ones((1, 60), np.int64))[0][0]
    expected, bound = pytorch(path, ids)
    assert np.abs(broken - expected).max() > bound


def _clip_values(proto: onnx.ModelProto) -> None:
    scale = next(tensor for tensor in proto.graph.initializer if tensor.name == "past_key_values.2.value.scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 8, scale.name))


def test_older_onnxruntimes_get_an_error(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.onnxruntime, "__version__", "1.26.0")
    if kind == "i8-token":
        load(path)  # it needs no new operator of onnxruntime's
        return
    with pytest.raises(
        ProSparseError, match=r"expected onnxruntime >= 1\.27 for its 8-bit KV cache, got 1\.26\.0"
    ) as error:
        load(path)
    assert error.value.hint == "upgrade onnxruntime, or export with --kv-cache f32"


@pytest.mark.parametrize("option", ["--attention", "--decomposed"])
def test_it_requires_fused_attention(
    option: str, run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = ["--attention", "unfused"] if option == "--attention" else ["--decomposed"]
    result = run_cli(DEMO, tmp_path / "m.onnx", "--kv-cache", "i8", *arguments, "-q")
    assert result.returncode == 1
    assert "error: KV cache: i8: requires fused attention" in result.stderr
    assert f"hint: omit {' '.join(arguments)}" in result.stderr
