"""A run of training: its output, precision, recovery, bad input and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from support.training_models import cache_of_the_hub, make_text
from support.training_runs import RECIPE, Notes, records_of, run_command, summary_of
from transformers import LlamaForCausalLM

from prosparse_models import TrainingError, load_checkpoint
from prosparse_models.training.recipe import Recipe, load_recipe, override
from prosparse_models.training.sparsify import sparsify
from prosparse_models.training.sparsify_options import SparsifyOptions

pytestmark = pytest.mark.integration


def test_a_run_leaves_a_sparse_model_and_its_records(trained_folder: Path, silu_folder: Path) -> None:
    summary = summary_of(trained_folder)
    names = {path.name for path in trained_folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("sparsify.json", "training.png", "checkpoints"),
    }
    assert (trained_folder / "training.png").stat().st_size > 10_000
    records = summary["records"]
    assert [r["step"] for r in records] == list(range(1, 13))
    for record in records:  # loss = cross entropy + lambda * L1
        total = record["cross_entropy"] + record["lambda"] * record["l1"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)
        assert len(record["sparsity_by_layer"]) == 2
    assert [r["lambda"] for r in records[:5]] == [0.0, 0.0, 0.0, 0.1, 0.1]
    assert records[9]["lambda"] == records[11]["lambda"] == 1.0
    assert records[-1]["l1"] < 0.8 * records[3]["l1"]
    before, after = summary["evaluations"][0], summary["evaluations"][-1]
    assert before["sparsity"] == 0.0
    assert 0.2 < after["sparsity"] < 1.0
    assert after["tokens"] == 512
    assert json.loads((trained_folder / "config.json").read_text())["hidden_act"] == "relu"
    trained = LlamaForCausalLM.from_pretrained(trained_folder)
    original = LlamaForCausalLM.from_pretrained(silu_folder)
    assert not torch.equal(trained.model.layers[0].mlp.up_proj.weight, original.model.layers[0].mlp.up_proj.weight)
    for folder in (trained_folder / "checkpoints").iterdir():
        assert load_checkpoint(folder).activation == "relu"


def test_mixed_precision_and_checkpointing(
    silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path, trained_folder: Path
) -> None:
    settings = ["training.precision=bfloat16", "training.gradient_checkpointing=true"]
    sparsify(silu_folder, tmp_path / "out", override(RECIPE, settings), training_options, Notes())
    ours, theirs = records_of(tmp_path / "out"), records_of(trained_folder)
    assert [r["lambda"] for r in ours] == [r["lambda"] for r in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2**-7)  # bfloat16 has 8 bits
    assert ours[0]["l1"] == pytest.approx(theirs[0]["l1"], rel=2**-6)


def test_recovery_aid_brings_the_layers_back(
    silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    settings = ["distillation.layer_steps=40", "distillation.layer_learning_rate=5e-3"]
    settings += ["distillation.logit_weight=0.5", "distillation.temperature=2.0"]
    notes = Notes()
    summary = sparsify(silu_folder, tmp_path / "out", override(RECIPE, settings), training_options, notes)
    assert notes.moments[:4] == ["before", "substituted", "layer recovery", "stage 0"]
    errors = [float(text.split()[-1]) for text in notes.stages if "relative squared error" in text]
    assert len(errors) == 10
    assert errors[-1] < 0.5 * errors[0]
    record = summary["records"][0]
    assert record["divergence"] > 0
    assert record["loss"] == pytest.approx(0.5 * record["cross_entropy"] + 0.5 * record["divergence"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(
    silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    recipe = override(RECIPE, ["training.learning_rate=1e30", "training.warmup_steps=0"])
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"training: step .*: expected (a finite loss|finite gradients)") as caught:
        sparsify(silu_folder, out, recipe, replace(training_options, save_every=1), Notes())
    assert caught.value.hint
    assert "the last good checkpoint is " in caught.value.hint
    assert not (out / "config.json").exists()
    kept = sorted((out / "checkpoints").iterdir())
    assert kept
    for tensor in load_checkpoint(kept[-1]).model.state_dict().values():
        assert torch.isfinite(tensor).all()


Change = Callable[[Path, SparsifyOptions], tuple[Recipe, SparsifyOptions]]


def changed_text(text: str, name: str = "t.jsonl") -> Change:
    def change(folder: Path, options: SparsifyOptions) -> tuple[Recipe, SparsifyOptions]:
        (folder / name).write_text(text)
        return RECIPE, replace(options, text=[folder / name])

    return change


BAD: dict[str, tuple[Change, str]] = {
    "empty file": (changed_text("", "t.txt"), "got empty files"),
    "empty jsonl": (changed_text(""), "got empty files"),
    "blank text": (changed_text('{"text": "  "}\n'), "expected at least one sequence of 32 tokens"),
    "too short": (changed_text('{"text": "a b c"}\n'), "expected at least one sequence of 32 tokens"),
    "another column": (changed_text('{"content": "a"}\n'), "expected a column 'text', got content"),
    "no JSON": (changed_text("{{{"), "cannot be read"),
    "unknown kind of file": (changed_text("a", "t.pdf"), "expected a text file (.txt, .md"),
    "no such file": (lambda f, o: (RECIPE, replace(o, text=[f / "none.txt"])), "no such file or folder"),
    "nothing held out": (
        lambda f, o: (RECIPE, replace(changed_text('{"text": "' + "ab " * 99 + '"}\n')(f, o)[1], eval_text=[])),
        "expected at least 32 tokens of held-out documents",
    ),
    "nothing to steer": (
        lambda f, o: (override(RECIPE, [], [(0.0, 2), (1.0, 4), (1.0, 6)]), replace(o, target_sparsity=0.9)),
        "expected at least 4 with a target sparsity, got 3",
    ),
    "context beyond the model": (
        lambda f, o: (override(RECIPE, ["training.context=512"]), replace(o, text=[make_text(f / "l.jsonl", 200)])),
        "expected at most the model's 256 positions, got 512",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_input(
    change: Change, message: str, silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    recipe, changed = change(tmp_path, training_options)
    with pytest.raises(TrainingError) as caught:
        sparsify(silu_folder, tmp_path / "out", recipe, changed, Notes())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_name_on_the_hub(
    silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is used without a network; a model that is not in it is a one-line error."""
    snapshot = cache_of_the_hub(silu_folder, tmp_path / "hub", "some-lab/tiny.silu")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text, held_out = training_options.text[0], training_options.eval_text[0]
    options = ["--text", text, "--eval-text", held_out, "--eval-tokens", 64]
    options += ["--set", "training.context=32", "--stage", "0:1", "-q"]
    done = run_command("sparsify", "some-lab/tiny.silu", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_act"] == "relu"
    assert json.loads((snapshot / "config.json").read_text())["hidden_act"] == "silu"
    failed = run_command("sparsify", "some-lab/other", tmp_path / "none", *options)
    assert failed.exit_code == 1
    error, hint = failed.stderr.strip().splitlines()
    assert error.startswith(
        "error: model: some-lab/other: not a local folder, and the Hugging Face Hub download failed"
    )
    assert "hf download some-lab/other --local-dir" in hint
    assert not (tmp_path / "none").exists()


def test_the_command_line(silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path) -> None:
    text = training_options.text[0]
    failed = run_command("sparsify", silu_folder, tmp_path / "o", "--text", text, "--set", "training.speed=3")
    assert failed.exit_code == 1
    assert "error: recipe: command line: unknown key training.speed" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "o").exists()
    assert run_command("sparsify", silu_folder, tmp_path / "o", "--text", text, "--stage", "1").exit_code == 2
    assert "torchrun" in run_command("sparsify", "--help").stdout
    listed = run_command("sparsify", "--list-recipes").stdout
    assert load_recipe("prosparse-7b").description in listed
