"""``prosparse sparsify`` and ``prosparse calibrate``: the loop, several processes, resuming, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_models import cache_of_the_hub, make_model_folder, make_text
from transformers import LlamaForCausalLM

from prosparse_models import TrainingError, find_ffns, load_checkpoint, substitute_activation
from prosparse_models.training.recipe import Recipe, Training, load_recipe, override
from prosparse_models.training.sparsify import SparsifyOptions, sparsify
from prosparse_models.training.trainer import ProSparseTrainer, collate, training_arguments

pytestmark = pytest.mark.integration
STAGES = ((0.0, 3), (0.1, 5), (1.0, 10), (1.0, 12))
RECIPE = Recipe(
    name="test",
    stages=STAGES,
    training=Training(
        context=32, sequences_per_step=4, micro_batch=2, learning_rate=3e-3, warmup_steps=2, precision="float32"
    ),
)


class Notes:
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.moments: list[str] = []
        self.texts: list[str] = []

    def status(self, text: str) -> None:
        self.texts.append(text)

    def record(self, record: dict[str, Any], steps: int) -> None:
        self.records.append(record)

    def evaluation(self, when: str, measurement: Any) -> None:
        self.moments.append(when)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "silu")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SparsifyOptions:
    folder = tmp_path_factory.mktemp("text")
    train, held_out = make_text(folder / "train.jsonl"), make_text(folder / "eval.jsonl", 8, 1000)
    return SparsifyOptions(text=[train], eval_text=[held_out], eval_tokens=512, log_every=1, save_every=7)


@pytest.fixture(scope="module")
def whole(model_dir: Path, options: SparsifyOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    notes = Notes()
    sparsify(model_dir, out, RECIPE, options, notes)
    assert notes.moments == ["before", "substituted", "stage 0", "stage 1", "stage 2", "stage 3", "saved"]
    return out


def records_of(out: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((out / "sparsify.json").read_text())["records"]
    return records


def same_numbers(actual: list[dict[str, Any]], expected: list[dict[str, Any]], rtol: float) -> None:
    assert [r["step"] for r in actual] == [r["step"] for r in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours["lambda"] == theirs["lambda"]
        for name in ("loss", "cross_entropy", "l1"):
            assert ours[name] == pytest.approx(theirs[name], rel=rtol), (ours["step"], name)


def test_a_run_leaves_a_sparse_model_and_its_records(whole: Path, model_dir: Path) -> None:
    summary = json.loads((whole / "sparsify.json").read_text())
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("sparsify.json", "training.png", "checkpoints"),
    }
    assert (whole / "training.png").stat().st_size > 10_000
    records = summary["records"]
    assert [r["step"] for r in records] == list(range(1, 13))
    for record in records:  # the loss is what it says it is
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
    assert json.loads((whole / "config.json").read_text())["hidden_act"] == "relu"
    trained = LlamaForCausalLM.from_pretrained(whole)
    original = LlamaForCausalLM.from_pretrained(model_dir)
    assert not torch.equal(trained.model.layers[0].mlp.up_proj.weight, original.model.layers[0].mlp.up_proj.weight)
    for folder in (whole / "checkpoints").iterdir():
        assert load_checkpoint(folder).activation == "relu"


def test_resuming_in_mid_stage_changes_nothing(
    whole: Path, model_dir: Path, options: SparsifyOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for folder in (out / "checkpoints").iterdir():
        if not folder.name.endswith("-10"):
            shutil.rmtree(folder)
    middle = tmp_path / "middle"

    class StopError(Exception):
        pass

    class StopAtEight(Notes):
        def record(self, record: dict[str, Any], steps: int) -> None:
            if record["step"] == 8:
                raise StopError

    with pytest.raises(StopError):  # killed in stage 2, after the checkpoint at 7
        sparsify(model_dir, middle, RECIPE, options, StopAtEight())
    assert not (middle / "config.json").exists()
    (middle / "checkpoints" / "checkpoint-8").mkdir()  # a save that was cut off
    sparsify(model_dir, middle, RECIPE, replace(options, resume=True), Notes())
    same_numbers(records_of(middle), records_of(whole), rtol=1e-6)
    one, two = (load_checkpoint(folder).model.state_dict() for folder in (middle, whole))
    for name, tensor in two.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-5, atol=1e-7)


def test_steering_survives_resuming(model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    steered = replace(options, target_sparsity=0.97)
    sparsify(model_dir, tmp_path / "out", RECIPE, steered, Notes())
    summary = json.loads((tmp_path / "out" / "sparsify.json").read_text())
    assert summary["stages"][3][0] > 1.0  # too dense at the end of stage 2: more lambda in stage 3
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-12")
    (tmp_path / "out" / "sparsify.json").unlink()
    sparsify(model_dir, tmp_path / "out", RECIPE, replace(steered, resume=True), Notes())
    again = json.loads((tmp_path / "out" / "sparsify.json").read_text())
    assert again["stages"] == summary["stages"]
    same_numbers(again["records"], summary["records"], rtol=1e-6)


def test_the_stages_ahead_can_be_replanned(
    whole: Path, model_dir: Path, options: SparsifyOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "checkpoint-12")
    again = replace(options, resume=True, replan=True)
    shorter = override(RECIPE, [], [*STAGES[:3], (1.0, 11)])
    sparsify(model_dir, out, shorter, replace(again, log_every=3), Notes())
    summary = json.loads((out / "sparsify.json").read_text())
    assert summary["stages"] == summary["recipe"]["stages"] == [[0.0, 3], [0.1, 5], [1.0, 10], [1.0, 11]]
    same_numbers(summary["records"], records_of(whole)[:11], rtol=1e-6)  # the checkpoint's log_every goes on
    assert summary["records"][-1]["sparsity"] == pytest.approx(records_of(whole)[10]["sparsity"], abs=1e-3)
    with pytest.raises(TrainingError, match=r"replan: .*: expected the lambda that trained step 6, 0.18\d+, got 0.28"):
        sparsify(model_dir, out, override(RECIPE, [], [*STAGES[:2], (2.0, 10), (2.0, 12)]), again, Notes())
    with pytest.raises(TrainingError, match="expected stages that end after its step 11, got 8"):
        sparsify(model_dir, out, override(RECIPE, [], [*STAGES[:2], (1.0, 8)]), again, Notes())
    longer = [*shorter.stages, (3.0, 20)]
    with pytest.raises(TrainingError, match=r"another recipe: training.learning_rate"):
        sparsify(model_dir, out, override(RECIPE, ["training.learning_rate=1e-3"], longer), again, Notes())


def run_command(
    *arguments: object, launcher: Sequence[str] = ("-m", "prosparse_export"), **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node=2 -m prosparse_export"
# With --cpu accelerate wants mpirun; --multi_gpu is its name for torchrun, whatever the device.
ACCELERATE = "-m accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --main_process_port=0 "
ACCELERATE += "--mixed_precision=no --dynamo_backend=no --module prosparse_export"
FSDP_ON_CPU = Path(__file__).parents[1] / "producers" / "fsdp_on_cpu.py"
FSDP_CONFIG = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: 2
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""


@pytest.fixture(scope="module")
def two_processes(
    model_dir: Path, options: SparsifyOptions, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``two_processes(launcher, out, *more)``: sparsify as `whole` did, over gloo, micro-batch 2 in each process."""
    recipe = tmp_path_factory.mktemp("recipe") / "test.toml"
    recipe.write_text(
        f"stages = {json.dumps([list(s) for s in STAGES])}\n[training]\ncontext = 32\nsequences_per_step = 4\n"
        "micro_batch = 2\nlearning_rate = 3e-3\nwarmup_steps = 2\nprecision = 'float32'\n"
    )
    arguments = ["--recipe", recipe, "--eval-tokens", 512, "--log-every", 1, "--save-every", 7, "--threads", 1]
    arguments += ["--text", options.text[0], "--eval-text", options.eval_text[0]]

    def run(launcher: str, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
        given = ["sparsify", model_dir, out, *arguments, *more]
        child = run_command(*given, launcher=launcher.split(), ACCELERATE_USE_CPU="true")
        assert child.returncode == 0, child.stderr
        return child

    return run


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_two_processes_are_one(
    launcher: str, whole: Path, two_processes: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """DDP: 2 processes x micro-batch 2 against 1 process x micro-batch 2 x accumulation 2."""
    child = two_processes(launcher, tmp_path / "two")
    same_run(tmp_path / "two", whole)
    assert child.stdout.count("tokens in") == 1  # only the first process speaks


def test_two_processes_that_share_the_model_are_one(
    whole: Path, two_processes: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """FSDP2, and resumed from its checkpoint: parameters, gradients and optimizer are halved between the processes."""
    config = tmp_path / "fsdp.yaml"
    config.write_text(FSDP_CONFIG)
    launcher = f"-m accelerate.commands.launch --config_file {config} --main_process_port=0 {FSDP_ON_CPU}"
    out = tmp_path / "two"
    two_processes(launcher, out)
    same_run(out, whole)
    trained, expected = load_checkpoint(out).model.state_dict(), load_checkpoint(whole).model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6)
    assert (out / "checkpoints" / "checkpoint-10" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP, not DDP
    shutil.rmtree(out / "checkpoints" / "checkpoint-12")
    (out / "sparsify.json").unlink()
    two_processes(launcher, out, "--resume")
    same_run(out, whole)


def same_run(out: Path, whole: Path) -> None:
    same_numbers(records_of(out), records_of(whole), rtol=1e-6)
    ours, theirs = (json.loads((folder / "sparsify.json").read_text()) for folder in (out, whole))
    assert ours["processes"] == 2
    for one, other in zip(ours["evaluations"], theirs["evaluations"], strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
        assert one["sparsity"] == pytest.approx(other["sparsity"], abs=1e-3)


def losses(
    model_dir: Path, rows: list[dict[str, torch.Tensor]], micro_batch: int, folder: Path
) -> list[dict[str, Any]]:
    model = load_checkpoint(model_dir).model
    ffns = find_ffns(model)
    substitute_activation(model, ffns, "relu")
    recipe = override(RECIPE, [f"training.micro_batch={micro_batch}", "training.seed=0"], [(2e-3, 4)])
    arguments = training_arguments(recipe, str(folder), logging_steps=1, use_cpu=True, dataloader_num_workers=0)
    arguments.train_sampling_strategy = "sequential"
    trainer = ProSparseTrainer(model, ffns, recipe, arguments, rows)
    trainer.data_collator = collate
    trainer.train()
    return [r for r in trainer.state.log_history if "lambda" in r]


def test_accumulation_and_padding_count_for_nothing(model_dir: Path, tmp_path: Path) -> None:
    """Rows of unequal length: 4 micro-batches of 1, or 1 of 4, or the same with more padding: one loss."""
    generator = torch.Generator().manual_seed(3)

    def rows(width: int) -> list[dict[str, torch.Tensor]]:
        made = []
        generator.manual_seed(3)
        for index in range(16):
            length = 6 + 5 * (index % 4)
            ids = torch.full((width,), 2)
            ids[:length] = torch.randint(3, 259, (length,), generator=generator)
            mask = (torch.arange(width) < length).long()
            made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
        return made

    expected = losses(model_dir, rows(24), 4, tmp_path / "a")
    assert len(expected) == 4
    same_numbers(losses(model_dir, rows(24), 1, tmp_path / "b"), expected, rtol=1e-6)
    same_numbers(losses(model_dir, rows(40), 2, tmp_path / "c"), expected, rtol=1e-6)
    for record in expected:
        assert record["loss"] == pytest.approx(record["cross_entropy"] + 2e-3 * record["l1"], rel=1e-6)


def test_mixed_precision_and_checkpointing(
    model_dir: Path, options: SparsifyOptions, tmp_path: Path, whole: Path
) -> None:
    settings = ["training.precision=bfloat16", "training.gradient_checkpointing=true"]
    sparsify(model_dir, tmp_path / "out", override(RECIPE, settings), options, Notes())
    ours, theirs = records_of(tmp_path / "out"), records_of(whole)
    assert [r["lambda"] for r in ours] == [r["lambda"] for r in theirs]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2**-7)  # bfloat16 has 8 bits
    assert ours[0]["l1"] == pytest.approx(theirs[0]["l1"], rel=2**-6)


def test_recovery_aid_brings_the_layers_back(model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    settings = ["distillation.layer_steps=40", "distillation.layer_learning_rate=5e-3"]
    settings += ["distillation.logit_weight=0.5", "distillation.temperature=2.0"]
    notes = Notes()
    summary = sparsify(model_dir, tmp_path / "out", override(RECIPE, settings), options, notes)
    assert notes.moments[:4] == ["before", "substituted", "layer recovery", "stage 0"]
    errors = [float(text.split()[-1]) for text in notes.texts if "relative squared error" in text]
    assert len(errors) == 10
    assert errors[-1] < 0.5 * errors[0]
    record = summary["records"][0]
    assert record["divergence"] > 0
    assert record["loss"] == pytest.approx(0.5 * record["cross_entropy"] + 0.5 * record["divergence"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    recipe = override(RECIPE, ["training.learning_rate=1e30", "training.warmup_steps=0"])
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"training: step .*: expected (a finite loss|finite gradients)") as caught:
        sparsify(model_dir, out, recipe, replace(options, save_every=1), Notes())
    assert caught.value.hint
    assert "is good" in caught.value.hint
    assert not (out / "config.json").exists()
    kept = sorted((out / "checkpoints").iterdir())
    assert kept
    for tensor in load_checkpoint(kept[-1]).model.state_dict().values():
        assert torch.isfinite(tensor).all()


def test_calibration_finds_the_largest_threshold_within_the_budget(
    whole: Path, options: SparsifyOptions, tmp_path: Path
) -> None:
    out = tmp_path / "shifted"
    arguments = ["calibrate", whole, out, "--text", options.eval_text[0], "--context", 32, "--tokens", 512]
    child = run_command(*arguments, "--budget", 2, "--json", "-q")
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout)
    values = [t["value"] for t in result["trials"]]
    assert values == sorted(values)
    assert {0.0, 0.005, 0.01, 0.02, 0.03} <= set(values)
    chosen, start = result["chosen"], result["trials"][0]
    assert chosen["perplexity"] <= result["perplexity_limit"] == pytest.approx(1.02 * start["perplexity"])
    above = [t for t in result["trials"] if t["value"] > chosen["value"]]
    assert above[0]["perplexity"] > result["perplexity_limit"]
    assert above[0]["value"] <= 1.1 * chosen["value"]  # bisected
    assert chosen["sparsity"] > start["sparsity"]
    assert [t["sparsity"] for t in result["trials"]] == sorted(t["sparsity"] for t in result["trials"])
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden_act"], config["hidden_act_param"]) == ("fatrelu", chosen["value"])
    assert load_checkpoint(out).threshold == chosen["value"]
    assert json.loads((whole / "config.json").read_text())["hidden_act"] == "relu"  # the source is as it was
    refused = run_command(*arguments)
    assert refused.returncode == 1
    assert "expected nothing there" in refused.stderr
    by_layer = run_command(*arguments, "--overwrite", "--per-layer", "--budget", 2, "--json", "-q")
    assert by_layer.returncode == 0, by_layer.stderr
    chosen = json.loads(by_layer.stdout)["chosen"]
    assert len(set(chosen["thresholds"])) == 2
    assert json.loads((out / "config.json").read_text())["hidden_act_param"] == chosen["thresholds"]
    assert load_checkpoint(out).config["hidden_act_param"] == chosen["thresholds"]


def test_calibration_wants_a_relu(model_dir: Path, options: SparsifyOptions) -> None:
    child = run_command("calibrate", model_dir, "--text", options.eval_text[0], "--context", 32, "-q")
    assert child.returncode == 1
    assert "expected ReLU or FATReLU, got SiLU" in child.stderr
    assert "hint: train the model with prosparse sparsify first" in child.stderr


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
    "unknown kind of file": (changed_text("a", "t.pdf"), "expected text files (.txt, .md"),
    "no such file": (lambda f, o: (RECIPE, replace(o, text=[f / "none.txt"])), "got nothing there"),
    "nothing held out": (
        lambda f, o: (RECIPE, replace(changed_text('{"text": "' + "ab " * 99 + '"}\n')(f, o)[1], eval_text=[])),
        "expected held-out documents of 32 tokens together",
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
def test_bad_input(change: Change, message: str, model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    recipe, changed = change(tmp_path, options)
    with pytest.raises(TrainingError) as caught:
        sparsify(model_dir, tmp_path / "out", recipe, changed, Notes())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_resuming_with_another_recipe_is_refused(
    whole: Path, model_dir: Path, options: SparsifyOptions, tmp_path: Path
) -> None:
    again = replace(options, resume=True)
    with pytest.raises(TrainingError, match=r"another recipe: training.learning_rate: expected 0.003 .* got 0.001"):
        sparsify(model_dir, whole, override(RECIPE, ["training.learning_rate=1e-3"]), again, Notes())
    with pytest.raises(TrainingError, match="another recipe: stages"):
        sparsify(model_dir, whole, override(RECIPE, [], [(0.0, 99)]), again, Notes())
    with pytest.raises(TrainingError, match="another recipe: target_sparsity"):
        sparsify(model_dir, whole, RECIPE, replace(again, target_sparsity=0.9), Notes())
    with pytest.raises(TrainingError, match="expected a complete checkpoint"):
        sparsify(model_dir, tmp_path / "new", RECIPE, again, Notes())
    with pytest.raises(TrainingError, match="expected an empty folder"):
        sparsify(model_dir, whole, RECIPE, options, Notes())


def test_a_name_on_the_hub(model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    """What huggingface_hub has cached is used as it is; without that and without a network, one line says so."""
    snapshot = cache_of_the_hub(model_dir, tmp_path / "hub", "some-lab/tiny.silu")
    arguments = [tmp_path / "out", "--text", options.text[0], "--eval-text", options.eval_text[0], "--eval-tokens", 64]
    arguments += ["--set", "training.context=32", "--stage", "0:1", "-q"]
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    child = run_command("sparsify", "some-lab/tiny.silu", *arguments, **offline)
    assert child.returncode == 0, child.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_act"] == "relu"
    assert json.loads((snapshot / "config.json").read_text())["hidden_act"] == "silu"
    child = run_command("sparsify", "some-lab/other", tmp_path / "none", *arguments[1:], **offline)
    assert child.returncode == 1
    error, hint = child.stderr.strip().splitlines()
    assert error.startswith("error: model: some-lab/other: no such folder here, and the Hugging Face Hub does not")
    assert "hf download some-lab/other --local-dir" in hint
    assert not (tmp_path / "none").exists()


def test_the_command_line(model_dir: Path, options: SparsifyOptions, tmp_path: Path) -> None:
    text = options.text[0]
    child = run_command("sparsify", model_dir, tmp_path / "o", "--text", text, "--set", "training.speed=3")
    assert child.returncode == 1
    assert "error: recipe: command line: unknown key training.speed" in child.stderr
    assert "Traceback" not in child.stderr
    assert not (tmp_path / "o").exists()
    assert run_command("sparsify", model_dir, tmp_path / "o", "--text", text, "--stage", "1").returncode == 2
    assert "torchrun" in run_command("sparsify", "--help").stdout
    listed = run_command("sparsify", "--list-recipes").stdout
    assert load_recipe("prosparse-7b").description in listed
