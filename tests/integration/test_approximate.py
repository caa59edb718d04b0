"""``--approximate silu``: a lossy mode that says so, costs what it says, and computes what PyTorch does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import DEMO
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, Phi3Config, Phi3ForCausalLM

from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.cli import main
from prosparse_export.export import Approximation
from prosparse_export.export.rounded_reference import stored_formats, with_stored_weights
from prosparse_models import load_checkpoint
from prosparse_models.approximation import ThresholdedSilu

pytestmark = pytest.mark.integration
D_MODEL, D_FF, LAYERS = 32, 96, 2
KEEP = 0.4
SIZES: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def save(folder: Path, model: torch.nn.Module) -> Path:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


def vocabulary() -> int:
    return int(json.loads((DEMO / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="module")
def swiglu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(**SIZES, vocab_size=vocabulary(), num_key_value_heads=2, hidden_act="silu")
    return save(tmp_path_factory.mktemp("swiglu") / "m", LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((DEMO.parent.parent / "README.md").read_text()[:4000])
    return path


@pytest.fixture(scope="module")
def artifact(swiglu: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lossy") / "out" / "m.onnx"
    arguments = ["--approximate", "silu", "--keep", str(KEEP), "--profile-text", str(text), "-q"]
    result = CliRunner().invoke(main, ["export", str(swiglu), str(output), *arguments])
    assert result.exit_code == 0, result.output
    lossy = json.loads((output.parent / "prosparse.json").read_text())["approximation"]
    assert result.stdout.splitlines()[1].startswith("LOSSY: silu approximated, 40% of the neurons kept: perplexity ")
    assert f"({lossy['perplexity'] / lossy['dense_perplexity'] - 1:+.2%})" in result.stdout
    return output


def rows_of(folder: Path, text: Path) -> torch.Tensor:
    from transformers import AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text.read_text())["input_ids"])
    return ids[: len(ids) // 64 * 64].reshape(-1, 64)


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor) -> float:
    logits = model(input_ids=rows).logits[:, :-1]
    return math.exp(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())))


def test_thresholds_and_cost_are_what_the_manifest_says(swiglu: Path, text: Path, artifact: Path) -> None:
    lossy = json.loads((artifact.parent / "prosparse.json").read_text())["approximation"]
    rows = rows_of(swiglu, text)
    model = load_checkpoint(swiglu).model
    sizes: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    for kept, layer in zip(sizes, model.model.layers, strict=True):
        layer.mlp.act_fn.register_forward_hook(lambda _, __, y, kept=kept: kept.append(y.abs().flatten().numpy()))
    with torch.no_grad():
        model(input_ids=rows[::2])
    for threshold, found in zip(lossy["thresholds"], sizes, strict=True):
        exact = np.quantile(np.concatenate(found), 1 - KEEP)
        assert threshold == pytest.approx(exact, rel=2 ** (1 / 128) - 1)  # one bin
    assert lossy["dense_perplexity"] == pytest.approx(perplexity(load_checkpoint(swiglu).model, rows[1::2]), rel=1e-5)
    approximated = approximated_model(swiglu, lossy["thresholds"])
    assert lossy["perplexity"] == pytest.approx(perplexity(approximated, rows[1::2]), rel=1e-5)
    assert lossy["perplexity"] != lossy["dense_perplexity"]
    assert abs(lossy["sparsity"] - (1 - KEEP)) < 0.05  # on other text than that which set the thresholds
    assert list(lossy["texts"]) == ["text.txt"]


def approximated_model(folder: Path, thresholds: list[float]) -> torch.nn.Module:
    model = load_checkpoint(folder).model
    for layer, threshold in zip(model.model.layers, thresholds, strict=True):
        layer.mlp.act_fn = ThresholdedSilu(threshold)
    return model


@pytest.mark.parametrize("library", [True, False])
def test_computes_what_pytorch_does_with_these_thresholds(swiglu: Path, artifact: Path, library: bool) -> None:
    manifest = require_manifest(artifact)
    thresholds = manifest.approximation.thresholds
    assert [(ffn.op, ffn.activation, ffn.threshold) for ffn in manifest.ffns] == [
        ("SparseGatedFFNF32", "silu", t) for t in thresholds
    ]
    ids = np.random.default_rng(0).integers(3, vocabulary(), (3, 20))
    with torch.no_grad():
        expected = approximated_model(swiglu, thresholds)(input_ids=torch.from_numpy(ids)).logits.numpy()
        dense = load_checkpoint(swiglu).model(input_ids=torch.from_numpy(ids)).logits.numpy()
    actual, _ = load(artifact, library=library).forward(ids, np.ones_like(ids))
    bound = 2 * (LAYERS * (8 * D_MODEL + D_FF + 20) + D_MODEL) * 2.0**-24 * np.abs(expected).max()
    assert np.abs(actual - expected).max() <= bound
    assert np.abs(actual - dense).max() > 1000 * bound  # it is lossy


def test_validate_and_info_know_that_it_is_lossy(swiglu: Path, artifact: Path) -> None:
    fast = ["-q", "--max-tokens", "128", "--context", "64", "--greedy", "4", "--step-tokens", "8"]
    result = CliRunner().invoke(main, ["validate", str(swiglu), str(artifact), *fast, "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["lossy"] is True
    assert values["exact_against"] == "PyTorch with the stored weights and thresholds"
    assert all(q["perplexity"] != q["reference_perplexity"] for q in values["quality"])
    assert len(values["operators"]) == LAYERS * (1 + 4) + 1  # FFN, q, k, v, o; lm_head
    assert abs(values["sparsity"]["mean"] - (1 - KEEP)) < 0.1
    strict = CliRunner().invoke(main, ["validate", str(swiglu), str(artifact), *fast, "--min-top1", "100%"])
    assert strict.exit_code == 1  # against the dense model
    assert "FAILED top-1 agreement" in strict.stdout
    info = CliRunner().invoke(main, ["info", str(artifact)])
    assert "LOSSY: silu approximated, 40% of the neurons kept" in info.stdout


def test_i4_decomposed(swiglu: Path, text: Path, tmp_path: Path) -> None:
    options = ExportOptions(approximate=Approximation(KEEP, (text,)), weights="i4", decomposed=True)
    result = export_model(swiglu, tmp_path / "out" / "m.onnx", options)
    assert {(o.op, o.activation) for o in result.rewritten} == {("SparseGatedFFNI4", "silu")}
    proto = onnx.load(result.path)
    assert {node.domain for node in proto.graph.node} == {""}
    ids = np.random.default_rng(0).integers(3, vocabulary(), (1, 20))
    model = approximated_model(swiglu, result.manifest.approximation.thresholds)
    with_stored_weights(model, stored_formats(result.manifest, result.path))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    actual, _ = load(result.path, library=False).forward(ids, np.ones_like(ids))
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def other_model(name: str, folder: Path) -> Path:
    sizes = {**SIZES, "vocab_size": vocabulary()}
    if name == "relu":
        return save(folder, LlamaForCausalLM(LlamaConfig(**sizes, hidden_act="relu")))
    if name == "no gate":
        sizes["ffn_dim"] = sizes.pop("intermediate_size")
        config = OPTConfig(**sizes, word_embed_proj_dim=D_MODEL, activation_function="silu")
        return save(folder, OPTForCausalLM(config))
    return save(folder, Phi3ForCausalLM(Phi3Config(**sizes, hidden_act="silu")))


OTHERS = {
    "relu": "expected SiLU, got ReLU",
    "no gate": "expected gate_proj and up_proj, got no gate",
    "packed": "expected gate_proj and up_proj, got gate and up in one matrix",
}


@pytest.mark.parametrize("name", OTHERS)
def test_unsupported_models_are_errors(name: str, text: Path, tmp_path: Path) -> None:
    folder = other_model(name, tmp_path / "m")
    with pytest.raises(ProSparseError) as caught:
        export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(approximate=Approximation(KEEP, (text,))))
    assert OTHERS[name] in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


BAD = {
    "no text": (["--approximate", "silu"], 1, "requires representative text"),
    "keep without it": (["--keep", "0.5"], 2, "--keep requires --approximate"),
    "all kept": (["--approximate", "silu", "--keep", "1", "--profile-text", "TEXT"], 2, "--keep"),
    "another activation": (
        ["--approximate", "silu", "--activation", "relu", "--profile-text", "TEXT"],
        2,
        "cannot be combined",
    ),
    "missing text": (
        ["--approximate", "silu", "--profile-text", "missing.txt"],
        1,
        "missing.txt: expected a text file",
    ),
    "short text": (["--approximate", "silu", "--profile-text", "SHORT"], 1, "expected at least 16 tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_one_line(name: str, swiglu: Path, text: Path, tmp_path: Path) -> None:
    arguments, code, message = BAD[name]
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    arguments = [{"TEXT": str(text), "SHORT": str(short)}.get(a, a) for a in arguments]
    result = CliRunner().invoke(main, ["export", str(swiglu), str(tmp_path / "out" / "m.onnx"), *arguments, "-q"])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    if code == 1:
        error, hint = result.stderr.splitlines()
        assert (error[:7], hint[:6]) == ("error: ", "hint: ")
    else:  # click's usage errors point to the help instead
        assert "--help" in result.stderr
    assert not (tmp_path / "out").exists()
