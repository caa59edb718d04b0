"""Several processes compute what one does: DDP and FSDP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.training_runs import STAGES, assert_same_records, records_of, summary_of

from prosparse_models import load_checkpoint
from prosparse_models.training.sparsify_options import SparsifyOptions

pytestmark = pytest.mark.integration
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
    silu_folder: Path, training_options: SparsifyOptions, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``two_processes(launcher, out, *more)``: the run of `trained_folder`, over gloo, micro-batch 2 per process."""
    recipe = tmp_path_factory.mktemp("recipe") / "test.toml"
    recipe.write_text(
        f"stages = {json.dumps([list(s) for s in STAGES])}\n[training]\ncontext = 32\nsequences_per_step = 4\n"
        "micro_batch = 2\nlearning_rate = 3e-3\nwarmup_steps = 2\nprecision = 'float32'\n"
    )
    arguments = ["--recipe", recipe, "--eval-tokens", 512, "--log-every", 1, "--save-every", 7, "--threads", 1]
    arguments += ["--text", training_options.text[0], "--eval-text", training_options.eval_text[0]]

    def run(launcher: str, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher.split(), *map(str, ["sparsify", silu_folder, out, *arguments, *more])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert child.returncode == 0, child.stderr
        return child

    return run


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_two_processes_are_one(
    launcher: str, trained_folder: Path, two_processes: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """DDP: 2 processes x micro-batch 2 against 1 process x micro-batch 2 x accumulation 2."""
    child = two_processes(launcher, tmp_path / "two")
    same_run(tmp_path / "two", trained_folder)
    assert child.stdout.count("tokens in") == 1  # only the first process prints


def test_two_processes_that_share_the_model_are_one(
    trained_folder: Path, two_processes: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """FSDP2, and resumed from its checkpoint: parameters, gradients and optimizer are halved between the processes."""
    config = tmp_path / "fsdp.yaml"
    config.write_text(FSDP_CONFIG)
    launcher = f"-m accelerate.commands.launch --config_file {config} --main_process_port=0 {FSDP_ON_CPU}"
    out = tmp_path / "two"
    two_processes(launcher, out)
    same_run(out, trained_folder)
    trained, expected = load_checkpoint(out).model.state_dict(), load_checkpoint(trained_folder).model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6)
    assert (out / "checkpoints" / "checkpoint-10" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP, not DDP
    shutil.rmtree(out / "checkpoints" / "checkpoint-12")
    (out / "sparsify.json").unlink()
    two_processes(launcher, out, "--resume")
    same_run(out, trained_folder)


def same_run(out: Path, trained_folder: Path) -> None:
    assert_same_records(records_of(out), records_of(trained_folder), rtol=1e-6)
    ours, theirs = (summary_of(folder) for folder in (out, trained_folder))
    assert ours["processes"] == 2
    for one, other in zip(ours["evaluations"], theirs["evaluations"], strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
        assert one["sparsity"] == pytest.approx(other["sparsity"], abs=1e-3)
