"""Resuming: from the middle of a stage, with an adjusted lambda, with other stages, and with another recipe."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import RECIPE, STAGES, Notes, assert_same_records, records_of, summary_of

from prosparse_models import TrainingError, load_checkpoint
from prosparse_models.training.recipe import override
from prosparse_models.training.sparsify import sparsify
from prosparse_models.training.sparsify_options import SparsifyOptions

pytestmark = pytest.mark.integration


def test_resuming_in_mid_stage_changes_nothing(
    trained_folder: Path, silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise StopError

    middle = tmp_path / "middle"
    with pytest.raises(StopError):  # in stage 2, after the checkpoint at 7
        sparsify(silu_folder, middle, RECIPE, training_options, Notes(stop))
    assert not (middle / "config.json").exists()
    (middle / "checkpoints" / "checkpoint-8").mkdir()  # an incomplete checkpoint
    sparsify(silu_folder, middle, RECIPE, replace(training_options, resume=True), Notes())
    assert_same_records(records_of(middle), records_of(trained_folder), rtol=1e-6)
    one, two = (load_checkpoint(folder).model.state_dict() for folder in (middle, trained_folder))
    for name, tensor in two.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-5, atol=1e-7)


def test_steering_survives_resuming(silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path) -> None:
    steered = replace(training_options, target_sparsity=0.97)
    sparsify(silu_folder, tmp_path / "out", RECIPE, steered, Notes())
    summary = summary_of(tmp_path / "out")
    assert summary["stages"][3][0] > 1.0  # too dense at the end of stage 2: more lambda in stage 3
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-12")
    (tmp_path / "out" / "sparsify.json").unlink()
    sparsify(silu_folder, tmp_path / "out", RECIPE, replace(steered, resume=True), Notes())
    again = summary_of(tmp_path / "out")
    assert again["stages"] == summary["stages"]
    assert_same_records(again["records"], summary["records"], rtol=1e-6)


def test_the_stages_ahead_can_be_replanned(
    trained_folder: Path, silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained_folder, out)
    shutil.rmtree(out / "checkpoints" / "checkpoint-12")
    again = replace(training_options, resume=True, replan=True)
    shorter = override(RECIPE, [], [*STAGES[:3], (1.0, 11)])
    sparsify(silu_folder, out, shorter, replace(again, log_every=3), Notes())
    summary = summary_of(out)
    assert summary["stages"] == summary["recipe"]["stages"] == [[0.0, 3], [0.1, 5], [1.0, 10], [1.0, 11]]
    assert_same_records(summary["records"], records_of(trained_folder)[:11], rtol=1e-6)  # the checkpoint's log_every
    assert summary["records"][-1]["sparsity"] == pytest.approx(records_of(trained_folder)[10]["sparsity"], abs=1e-3)
    with pytest.raises(TrainingError, match=r"replan: .*: expected the lambda of step 6, 0.18\d+, got 0.28"):
        sparsify(silu_folder, out, override(RECIPE, [], [*STAGES[:2], (2.0, 10), (2.0, 12)]), again, Notes())
    with pytest.raises(TrainingError, match="expected stages that end after its step 11, got 8"):
        sparsify(silu_folder, out, override(RECIPE, [], [*STAGES[:2], (1.0, 8)]), again, Notes())
    longer = [*shorter.stages, (3.0, 20)]
    with pytest.raises(TrainingError, match=r"the recipe has changed: training.learning_rate"):
        sparsify(silu_folder, out, override(RECIPE, ["training.learning_rate=1e-3"], longer), again, Notes())


def test_another_recipe_cannot_be_resumed(
    trained_folder: Path, silu_folder: Path, training_options: SparsifyOptions, tmp_path: Path
) -> None:
    again = replace(training_options, resume=True)
    with pytest.raises(
        TrainingError, match=r"the recipe has changed: training.learning_rate: expected .* 0.003, got 0.001"
    ):
        sparsify(silu_folder, trained_folder, override(RECIPE, ["training.learning_rate=1e-3"]), again, Notes())
    with pytest.raises(TrainingError, match="the recipe has changed: stages"):
        sparsify(silu_folder, trained_folder, override(RECIPE, [], [(0.0, 99)]), again, Notes())
    with pytest.raises(TrainingError, match="the recipe has changed: target_sparsity"):
        sparsify(silu_folder, trained_folder, RECIPE, replace(again, target_sparsity=0.9), Notes())
    with pytest.raises(TrainingError, match=r"no complete checkpoint-\* found"):
        sparsify(silu_folder, tmp_path / "new", RECIPE, again, Notes())
    with pytest.raises(TrainingError, match="expected an empty folder"):
        sparsify(silu_folder, trained_folder, RECIPE, training_options, Notes())
