"""The demo model through the whole chain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from prosparse_export import load, validate
from prosparse_export.artifact.manifest import LinearRecord, ModelFolderSource, require_manifest
from prosparse_export.runtime import operator_library
from prosparse_export.runtime.sampling import Sampling
from prosparse_export.text import default_text
from prosparse_export.validation import ValidationOptions

pytestmark = pytest.mark.integration


def prompt_ids(artifact: Path, count: int) -> NDArray[np.int64]:
    tokenizer = load(artifact).tokenizer
    assert tokenizer is not None
    return np.asarray(tokenizer.encode(default_text()).ids[:count], np.int64)[None]


def test_logits_top1_and_greedy_tokens_are_pytorchs(demo_folder: Path, demo_artifact: Path) -> None:
    options = ValidationOptions(tokens=2048, max_abs_diff=1e-3, greedy=64, step_tokens=2048)
    result = validate(demo_folder, demo_artifact, options)
    names = [c.name for c in result.comparisons]
    runs = ["prefill", "token by token", "batch of 3, left-padded"]
    assert names == [f"{library} library: {run}" for library in ("with", "without") for run in runs]
    for comparison in result.comparisons:
        assert comparison.max_abs_diff <= 1e-3, comparison
        assert comparison.top1_differs == comparison.ties == 0, comparison
        assert comparison.greedy_differs == 0, comparison
        assert comparison.passed
    assert [c.tokens for c in result.comparisons[:2]] == [2048, 2048]
    assert [c.greedy_tokens for c in result.comparisons[:3]] == [192, 0, 192]


def test_validation_fails_where_it_should(demo_folder: Path, demo_artifact: Path) -> None:
    command = [sys.executable, "-c", "from prosparse_export.cli import main; main()", "validate", "-q"]
    arguments = [str(demo_folder), str(demo_artifact), "--max-tokens", "64", "--greedy", "4", "--max-abs-diff", "1e-9"]
    child = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "FAILED" in child.stdout


def test_validation_fails_on_a_changed_weight(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_artifact.parent, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / demo_artifact.name)
    weight = next(i for i in model.graph.initializer if i.name == "model.layers.2.mlp.gate_proj.weight.bf16")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[:64] = (array[:64].astype(np.float32) * 1.5).astype(array.dtype)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    (tmp_path / f"{demo_artifact.name}.data").unlink()
    onnx.save(model, tmp_path / "changed.onnx")
    result = validate(demo_folder, tmp_path / "changed.onnx", ValidationOptions(tokens=64, greedy=4))
    assert not any(c.passed for c in result.comparisons)


def test_any_thread_count_gives_the_same_bits(demo_artifact: Path) -> None:
    ids = prompt_ids(demo_artifact, 65)
    mask = np.ones_like(ids)
    results = []
    for threads in (1, 2, 3, 4):
        model = load(demo_artifact, threads=threads)
        prefill, cache = model.forward(ids[:, :64], mask[:, :64])
        decode, _ = model.forward(ids[:, 64:], mask, cache)
        results.append((prefill, decode))
    for prefill, decode in results[1:]:
        np.testing.assert_array_equal(prefill, results[0][0])
        np.testing.assert_array_equal(decode, results[0][1])


def test_a_large_model_without_the_library_keeps_its_weights_narrow(
    demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime would keep a float32 copy of every weight: of a 7B model 27 GB."""
    ids = prompt_ids(demo_artifact, 16)
    sizes, logits = {}, []
    for limit in (0, operator_library.FOLDED_BYTES):
        monkeypatch.setattr(operator_library, "FOLDED_BYTES", limit)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{limit}.onnx")
        model = load(demo_artifact, library=False, session_options=options)
        logits.append(model.forward(ids, np.ones_like(ids))[0])
        tensors = onnx.load(tmp_path / f"{limit}.onnx", load_external_data=False).graph.initializer
        sizes[limit] = sum(4 * int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)
    small, large = sizes.values()
    assert small < 1e6 < 10e6 < large
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)  # the order of sums may differ
    monkeypatch.setattr(operator_library, "FOLDED_BYTES", 0)
    manifest = require_manifest(demo_artifact)
    wide = replace(manifest, weight_format="f32", linears=LinearRecord("f32"))
    assert operator_library.disabled_optimizers(demo_artifact, manifest, library=False) == ["ConstantFolding"]
    assert operator_library.disabled_optimizers(demo_artifact, manifest, library=True) == []
    assert operator_library.disabled_optimizers(demo_artifact, wide, library=False) == []


def test_text_is_the_same_without_the_library(demo_artifact: Path) -> None:
    with_library = load(demo_artifact).generate("The city of Paris is", max_new_tokens=32)
    assert with_library == load(demo_artifact, library=False).generate("The city of Paris is", max_new_tokens=32)
    assert len(with_library.split()) >= 5  # then it ends the article


def test_sampling_is_reproducible_and_really_samples(demo_artifact: Path) -> None:
    model = load(demo_artifact)
    texts = {s: model.generate("In 1905,", max_new_tokens=16, sampling=Sampling(1.0, seed=s)) for s in range(3)}
    assert texts[1] == model.generate("In 1905,", max_new_tokens=16, sampling=Sampling(1.0, seed=1))
    assert len(set(texts.values())) == 3


def test_artifact_is_complete(demo_artifact: Path) -> None:
    names = {path.name for path in demo_artifact.parent.iterdir()}
    wanted = {"demo.onnx", "demo.onnx.data", "config.json", "generation_config.json", "tokenizer.json"}
    assert wanted | {"tokenizer_config.json", "prosparse.json", "lib"} <= names
    manifest = require_manifest(demo_artifact)
    assert len(manifest.rewritten) == len(manifest.ffns) == 5
    assert manifest.not_rewritten == ()
    assert manifest.fused_attention
    assert isinstance(manifest.source, ModelFolderSource)
    assert set(manifest.source.sha256) == {"config.json", "model.safetensors"}
    onnx.checker.check_model(str(demo_artifact))
    model = onnx.load(demo_artifact, load_external_data=False)
    assert [n.op_type for n in model.graph.node].count("SparseGatedFFNBF16") == 5
    assert [n.op_type for n in model.graph.node].count("LinearBF16") == 5 * 2 + 1  # q, k and v in one, o; lm_head
    assert {f.name for f in model.functions} == {"SparseGatedFFNBF16", "LinearBF16", "RotaryCachedAttentionF32"}
    assert not any(n.op_type == "MatMul" and n.input[1].endswith("weight") for n in model.graph.node)
    for initializer in model.graph.initializer:  # those above 64 KiB begin at a page: they are mapped, not copied
        entries = {e.key: e.value for e in initializer.external_data}
        if int(entries.get("length", 0)) > 65536:
            assert int(entries["offset"]) % 4096 == 0


def test_the_demo_is_sparse_by_training(demo_folder: Path) -> None:
    """Sparsity on the text that validate uses is near the model card's, which was measured on other held-out text."""
    import torch

    from prosparse_models import load_checkpoint

    model = load_checkpoint(demo_folder).model
    zeros: list[float] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args: zeros.append((args[0] == 0).float().mean().item())
        )
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(demo_folder)(default_text())["input_ids"][:512]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    assert len(zeros) == 5
    card = json.loads((demo_folder / "metrics.json").read_text())["progressive"][0]["sparsity"]
    assert np.mean(zeros) == pytest.approx(card, abs=0.03)
    assert model.model.layers[0].mlp.gate_proj.bias is None  # nothing but weights could make them zero


def test_demo_fits_in_git(demo_folder: Path) -> None:
    tracked = [p for p in demo_folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in tracked) <= 12_000_000
