"""Integer formats: what the choice of scales and formats is measured on, and what the manifest says about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from graph_passes import FfnFormat
from prosparse_export import ExportOptions, export_model
from prosparse_export.analysis.stored_scales import stored_scales
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.export import export
from prosparse_export.export.choose_formats import plan_by_rule
from prosparse_export.export.input_moments import calibration_documents, input_moments
from prosparse_export.text import default_text
from prosparse_export.validation import ValidationOptions, validate
from prosparse_models import load_checkpoint

LAYERS = 5


@pytest.fixture(scope="module")
def artifact(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(demo_folder, tmp_path_factory.mktemp("i4") / "m.onnx", ExportOptions(weights="i4")).path


def test_moments_are_the_mean_squares_of_the_inputs(demo_folder: Path) -> None:
    in_files, in_memory = load_checkpoint(demo_folder, in_files=True), load_checkpoint(demo_folder)
    documents = calibration_documents(in_memory, demo_folder, [("t", "The demo writes sentences. " * 40)])
    assert documents is not None
    found = [input_moments(c, documents, lambda *_: None).by_module for c in (in_files, in_memory)]
    for name, value in found[1].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-3, atol=1e-3)
    ids = documents[0].ids
    row = ids[: min(256, len(ids))]
    seen: list[torch.Tensor] = []
    down = in_memory.model.get_submodule("model.layers.2.mlp.down_proj")
    down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        in_memory.model(input_ids=torch.from_numpy(row)[None])
    expected = seen[0].float().square().mean((0, 1)).numpy()
    if len(ids) < 512:  # one row
        got = found[1]["model.layers.2.mlp.down_proj"] - 1e-3
        np.testing.assert_allclose(got, expected / expected.mean(), rtol=1e-3, atol=1e-4)
    assert found[1]["model.embed_tokens"] is found[1]["lm_head"]


def test_i4_keeps_some_matrices_in_8_bits(artifact: Path) -> None:
    manifest = require_manifest(artifact)
    assert manifest.linears is not None
    values = {f"model.layers.{i}.self_attn.v_proj": "i8" for i in range(LAYERS)}
    assert manifest.linears.exceptions == {"model.embed_tokens": "i8", "lm_head": "i8", **values}
    assert manifest.rounding is not None
    assert manifest.rounding.tokens > 1000
    kinds = [node.op_type for node in onnx.load(artifact, load_external_data=False).graph.node]
    assert kinds.count("LinearI8") == LAYERS + 1
    assert kinds.count("LinearI4") == 2 * LAYERS


def test_scales_are_found_by_module(artifact: Path) -> None:
    scales = stored_scales(artifact)
    layer = "model.layers.0.self_attn."
    assert scales[f"{layer}k_proj"].name == scales[f"{layer}q_proj"].name
    assert scales[f"{layer}k_proj"].before == (f"{layer}q_proj",)
    assert scales[f"{layer}v_proj"].before == ()
    assert "lm_head" not in scales  # stored as the embedding
    assert scales["model.layers.0.mlp.down_proj"].read().shape == (1024, 8)


def test_one_format_for_all_if_asked(demo_folder: Path) -> None:
    checkpoint = load_checkpoint(demo_folder)
    assert plan_by_rule(checkpoint, ExportOptions(weights="i4", other_weights="i4")).exceptions == {}
    assert plan_by_rule(checkpoint, ExportOptions(weights="i8")).exceptions == {}
    assert plan_by_rule(checkpoint, ExportOptions()).ffn == "bf16"


def test_a_folder_without_a_tokenizer_weighs_all_errors_the_same(demo_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(demo_folder / name, folder / name)
    checkpoint = load_checkpoint(folder, in_files=True)
    assert calibration_documents(checkpoint, folder, ()) is None


@pytest.mark.parametrize("weights", ["i4", "nl4"])
def test_compensated_rounding_passes_validation(weights: FfnFormat, demo_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(default_text()[-4000:], encoding="utf-8")
    options = ExportOptions(weights=weights, profile_texts=(text,), target_bytes=4_300_000)
    result = export_model(demo_folder, tmp_path / "out" / "m.onnx", options)
    rounding = result.manifest.rounding
    assert rounding is not None
    assert any(name.endswith("down_proj") for name in rounding.compensated)
    assert {cost.format for cost in rounding.costs} == {weights, "i8"}
    size = sum(record.bytes for record in result.manifest.files.values())
    assert size <= 4_300_000
    few = ValidationOptions(tokens=128, step_tokens=8, greedy=4, operator_tokens=16)
    assert validate(demo_folder, result.path, few).passed


def test_a_dense_model_is_checked_with_the_library(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its linear layers are operators of the library too; their function bodies need several times the memory."""
    shutil.copytree(demo_folder, tmp_path / "dense")
    config = tmp_path / "dense" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "silu"}))
    checked: list[bool] = []
    monkeypatch.setattr(export, "check_logits", lambda *_, library: checked.append(library))
    for weights in ("i8", "f32"):
        result = export_model(
            tmp_path / "dense", tmp_path / weights / "m.onnx", ExportOptions(weights=weights, allow_dense=True)
        )
        assert not result.rewritten
        assert checked.pop() == bool(result.manifest.operators)
    assert any("Linear" in name for name in require_manifest(tmp_path / "i8" / "m.onnx").operators)


@pytest.mark.parametrize(
    ("weights", "text", "warns"), [("nl4", "The demo. " * 20, True), ("i8", "The demo. " * 20, False)]
)
def test_a_text_too_short_for_compensation_is_named(
    weights: FfnFormat, text: str, warns: bool, demo_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    options = ExportOptions(weights=weights, profile_texts=(tmp_path / "short.txt",))
    result = export_model(demo_folder, tmp_path / "out" / "m.onnx", options)
    expected = "profile text: expected at least 256 tokens for compensated rounding, got "
    assert [line.startswith(expected) and line.endswith("rounded to nearest") for line in result.warnings] == [
        True
    ] * warns
    assert result.manifest.rounding is not None
    assert not result.manifest.rounding.compensated
