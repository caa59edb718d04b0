"""Trainer callback: evaluate at the end of each stage, adjust lambda, complete checkpoints, keep records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prosparse_models.errors import TrainingError
from prosparse_models.sparsity import Measurement
from prosparse_models.training.recipe import Recipe
from prosparse_models.training.saving import RUN_FILE, add_config_fields, complete_checkpoints, write_json
from prosparse_models.training.schedule import l1_coefficient
from prosparse_models.training.target_sparsity import steer_stages
from prosparse_models.training.trainer import last_good

__all__ = ["SparsifyCallback", "last_checkpoint"]


class SparsifyCallback(TrainerCallback):
    """Evaluates at the end of each stage, adjusts lambda, and completes checkpoints.

    Args:
        recipe: stored in each checkpoint, for `last_checkpoint` to compare.
        stages: the trainer's schedule; changed in place if ``target`` is given.
        evaluate: measures the model on held-out text; called by every process.
        fields: fields of config.json, so that checkpoints are valid model folders.
        target: target sparsity, or None.
        records: training records so far; new ones are appended.
        evaluations: evaluations so far; new ones are appended.
        on_record: called with each training record.
        on_evaluation: called with the name of the evaluation and the measurement.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: list[tuple[float, int]],
        evaluate: Callable[[], Measurement],
        *,
        fields: dict[str, Any],
        target: float | None,
        records: list[dict[str, Any]],
        evaluations: list[dict[str, Any]],
        on_record: Callable[[dict[str, Any]], None],
        on_evaluation: Callable[[str, Measurement], None],
    ) -> None:
        self._recipe, self._stages, self._evaluate = recipe, stages, evaluate
        self._fields, self._target = fields, target
        self.records, self.evaluations = records, evaluations
        self._on_record, self._on_evaluation = on_record, on_evaluation

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before non-finite gradients reach the weights (with fp16, the scaler skips these steps)."""
        if args.fp16:
            return
        model: nn.Module = kwargs["model"]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"training: step {state.global_step + 1}: expected finite gradients, got norm {float(norm)}",
                hint=f"{last_good(Path(str(args.output_dir)))}lower training.learning_rate",
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep a training record."""
        if logs and "lambda" in logs:
            record = {"step": state.global_step, **logs}
            self.records.append(record)
            self._on_record(record)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """At a stage's last step: evaluate, adjust the later stages, request a checkpoint."""
        for index, (peak, last) in enumerate(self._stages):
            if state.global_step == last:
                measurement = self._evaluate()
                name = f"stage {index}"
                entry = {"when": name, "step": last, "lambda": peak, **measurement.as_dict()}
                if self._target is not None:
                    entry["steered"] = steer_stages(self._stages, index, measurement.sparsity, self._target)
                self.evaluations.append(entry)
                self._on_evaluation(name, measurement)
                control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the new checkpoint."""
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if (folder / "config.json").is_file():
            add_config_fields(folder, self._fields)
        values = {
            "recipe": self._recipe.as_dict(),
            "target_sparsity": self._target,
            "stages": [list(stage) for stage in self._stages],
            "records": self.records,
            "evaluations": self.evaluations,
        }
        write_json(folder / RUN_FILE, values)


def last_checkpoint(
    folder: Path, recipe: Recipe, target: float | None, *, replan: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Return the newest complete checkpoint in ``folder`` and its run file's content.

    Args:
        folder: the folder of checkpoints.
        recipe: the recipe to continue with.
        target: target sparsity, or None.
        replan: allow other stages after the checkpoint's step, if lambda is the same up to it. The returned "stages"
            are then the recipe's.

    Raises:
        TrainingError: there is no complete checkpoint, or its recipe differs.
    """
    found = complete_checkpoints(folder)
    if not found:
        raise TrainingError(
            f"resume: {folder}: no complete {PREFIX_CHECKPOINT_DIR}-* found",
            hint="start over with --overwrite",
        )
    values: dict[str, Any] = json.loads((found[-1] / RUN_FILE).read_text(encoding="utf-8"))
    if replan:
        _replan(values, recipe, step=int(found[-1].name.rpartition("-")[2]), where=found[-1])
    wanted = {**_flat(recipe.as_dict()), "target_sparsity": target}
    stored = {**_flat(values["recipe"]), "target_sparsity": values["target_sparsity"]}
    for key in [*wanted, *(k for k in stored if k not in wanted)]:
        if wanted.get(key) != stored.get(key):
            raise TrainingError(
                f"resume: {found[-1]}: the recipe has changed: {key}: expected the checkpoint's {stored.get(key)!r}, "
                f"got {wanted.get(key)!r}",
                hint="resume with the same recipe and settings, or start over in another folder",
            )
    return found[-1], values


def _replan(values: dict[str, Any], recipe: Recipe, step: int, where: Path) -> None:
    """Put the recipe's stages into ``values``, a run file's content, if lambda is unchanged up to ``step``."""
    if recipe.steps <= step:
        raise TrainingError(
            f"replan: {where}: expected stages that end after its step {step}, got {recipe.steps}",
            hint="omit --replan to keep the stages",
        )
    for past in range(1, step + 1):
        was, would_be = l1_coefficient(past, values["stages"]), l1_coefficient(past, recipe.stages)
        if was != would_be:
            raise TrainingError(
                f"replan: {where}: expected the lambda of step {past}, {was:g}, got {would_be:g}",
                hint=f"change only stages after step {step}",
            )
    values["stages"] = values["recipe"]["stages"] = recipe.as_dict()["stages"]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
