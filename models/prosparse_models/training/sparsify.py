"""Run the whole method on a model folder: substitute, train with the progressive L1 term, save, evaluate."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback

from prosparse_export.atomic_write import disk_errors
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import find_ffns
from prosparse_models.loading.checkpoint import load_checkpoint
from prosparse_models.loading.substitution import saved_fields, substitute_activation
from prosparse_models.loading.tokenizer import load_tokenizer
from prosparse_models.sparsity import Measurement, measure
from prosparse_models.training.distillation import recover_layers
from prosparse_models.training.monitor import Monitor, SilentMonitor
from prosparse_models.training.recipe import Recipe
from prosparse_models.training.saving import move_into, write_json, write_model
from prosparse_models.training.sparsify_callback import SparsifyCallback, last_checkpoint
from prosparse_models.training.sparsify_options import (
    SparsifyOptions,
    check_devices,
    check_target,
    prepare_output,
    text_sources,
)
from prosparse_models.training.trainer import ProSparseTrainer, collate, sum_over_processes, training_arguments
from prosparse_models.training.training_plot import plot_training
from prosparse_models.training.training_text import PackedText, evaluation_rows

__all__ = ["sparsify"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def sparsify(model_dir: Path, out: Path, recipe: Recipe, options: SparsifyOptions, monitor: Monitor) -> dict[str, Any]:
    """Train the model in ``model_dir`` to be sparse and write it to ``out``.

    ``out`` gets the model folder, sparsify.json (recipe, evaluations, records), training.png, and checkpoints/. Under
    torchrun or accelerate launch every process calls this; the first one writes.

    Returns:
        The content of sparsify.json.

    Raises:
        CheckpointError: the model folder cannot be loaded.
        TrainingError: text, recipe or output folder are unsuitable, or the loss is not finite.
    """
    prepare_output(out, model_dir, options)
    check_target(recipe, options.target_sparsity)
    run = _Run(model_dir, out, recipe, options, monitor)
    run.prepare()
    run.train()
    return run.save()


class _Run:
    """One training run, in one process."""

    def __init__(self, model_dir: Path, out: Path, recipe: Recipe, options: SparsifyOptions, monitor: Monitor) -> None:
        self._out, self._recipe, self._options = out, recipe, options
        self._args = training_arguments(
            recipe,
            str(out / "checkpoints"),
            logging_steps=options.log_every,
            logging_first_step=True,
            save_steps=options.save_every,
            save_total_limit=options.keep_checkpoints,
            use_cpu=not torch.cuda.is_available(),  # not MPS: the sums are kept in float64, which it lacks
        )
        check_devices(self._args)
        self._checkpoint_dir: Path | None = None
        self._stages = list(recipe.stages)
        self._records: list[dict[str, Any]] = []
        self._evaluations: list[dict[str, Any]] = []
        if options.resume:
            found = last_checkpoint(out / "checkpoints", recipe, options.target_sparsity, replan=options.replan)
            self._checkpoint_dir, state = found
            self._stages = [(float(peak), int(last)) for peak, last in state["stages"]]
            self._records, self._evaluations = state["records"], state["evaluations"]
        self._is_first = self._args.process_index == 0
        self._monitor: Monitor = monitor if self._is_first else SilentMonitor()
        self._load_text(model_dir)
        self._load_model(model_dir)

    def _load_text(self, model_dir: Path) -> None:
        self._monitor.progress("load text", 0, 0)
        training = self._recipe.training
        self._tokenizer = load_tokenizer(model_dir)
        train, held_out = text_sources(self._options)
        self._rows = evaluation_rows(held_out, self._tokenizer, training.context, self._options.eval_tokens)
        self._stream = PackedText(train, self._tokenizer, training.context, training.seed)
        next(iter(self._stream))  # fails on too little text before the model is loaded

    def _load_model(self, model_dir: Path) -> None:
        self._monitor.progress("load model", 0, 0)
        self._source = load_checkpoint(model_dir, trust_remote_code=self._options.trust_remote_code)
        self._model = self._source.model
        self._ffns = find_ffns(self._model)
        longest, context = getattr(self._model.config, "max_position_embeddings", None), self._recipe.training.context
        if isinstance(longest, int) and context > longest:
            raise TrainingError(
                f"recipe: training.context: expected at most the model's {longest} positions, got {context}",
                hint=f"--set training.context={longest}",
            )

    def prepare(self) -> None:
        """Substitute the activation, recover the layers if the recipe says so, and evaluate before and after."""
        recipe, is_new = self._recipe, self._checkpoint_dir is None
        recovers = recipe.distillation.layer_steps > 0 and is_new
        has_teacher = recipe.distillation.logit_weight > 0 or recovers
        self._teacher = copy.deepcopy(self._model) if has_teacher else None
        self._model.to(self._args.device)
        if is_new:
            self._evaluate_now("before")
        substitute_activation(self._model, self._ffns, recipe.activation, recipe.threshold)
        if is_new and recipe.activation != "keep":
            self._evaluate_now("substituted")
        if recovers and self._teacher is not None:
            self._recover(self._teacher)
            self._evaluate_now("layer recovery")

    def _evaluate_now(self, when: str) -> None:
        self._monitor.progress(f"evaluate: {when}", 0, 0)
        measurement = self._evaluate(self._model)
        self._evaluations.append({"when": when, "step": 0, "lambda": 0.0, **measurement.as_dict()})
        self._monitor.evaluation(when, measurement)

    def _evaluate(self, model: torch.nn.Module) -> Measurement:
        return measure(
            model,
            self._ffns,
            self._rows,
            batch=max(1, self._recipe.training.micro_batch),
            rank=self._args.process_index,
            world_size=self._args.world_size,
            reduce=sum_over_processes,
        )

    def _recover(self, teacher: PreTrainedModel) -> None:
        distillation = self._recipe.distillation
        self._monitor.progress(f"layer recovery, {distillation.layer_steps} steps", 0, 0)
        loader = DataLoader(self._stream, batch_size=self._recipe.training.micro_batch, collate_fn=collate)
        own: Iterator[Any] = islice(iter(loader), self._args.process_index, None, self._args.world_size)
        recover_layers(
            teacher.to(self._args.device),
            find_ffns(teacher),
            self._ffns,
            own,
            steps=distillation.layer_steps,
            learning_rate=distillation.layer_learning_rate,
            device=self._args.device,
            progress=self._monitor.progress,
        )

    def train(self) -> None:
        """Train from the start, or from the checkpoint if resumed."""
        recipe, monitor = self._recipe, self._monitor
        self._fields = saved_fields(self._model.config, recipe.activation, [recipe.threshold], self._source.config)
        if getattr(self._model.config, "use_cache", None) is True:
            self._fields["use_cache"] = True  # Trainer turns it off during training
        callback = SparsifyCallback(
            recipe,
            self._stages,
            lambda: self._evaluate(self._trainer.model_wrapped),
            fields=self._fields,
            target=self._options.target_sparsity,
            records=self._records,
            evaluations=self._evaluations,
            on_record=lambda record: monitor.record(record, recipe.steps),
            on_evaluation=monitor.evaluation,
        )
        self._trainer = ProSparseTrainer(
            self._model,
            self._ffns,
            recipe,
            self._args,
            self._stream,
            stages=self._stages,
            teacher=self._teacher,
            callbacks=[callback],
        )
        self._trainer.data_collator = collate
        self._trainer.remove_callback(PrinterCallback)
        monitor.progress("train", 0, 0)
        began = time.monotonic()
        self._trainer.train(resume_from_checkpoint=str(self._checkpoint_dir) if self._checkpoint_dir else None)
        self._seconds = time.monotonic() - began

    def save(self) -> dict[str, Any]:
        """Write the output folder, in the first process, and return the content of sparsify.json."""
        recipe = self._recipe
        state = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)  # gathers FSDP's shards
        summary: dict[str, Any] = {
            "recipe": recipe.as_dict(),
            "target_sparsity": self._options.target_sparsity,
            "stages": [list(stage) for stage in self._stages],
            "tokens": recipe.steps * recipe.training.sequences_per_step * recipe.training.context,
            "seconds": round(self._seconds, 1),
            "processes": self._args.world_size,
            "resumed": self._checkpoint_dir is not None,
            "evaluations": self._evaluations,
            "records": self._records,
        }
        if self._is_first:
            saved = self._save_model(state)
            entry = {"when": "saved", "step": recipe.steps, "lambda": self._stages[-1][0]}
            self._evaluations.append({**entry, **saved.as_dict()})
            write_json(self._out / "sparsify.json", summary)
            plot_training(self._records, [last for _, last in self._stages], self._out / "training.png")
        self._trainer.accelerator.wait_for_everyone()
        return summary

    def _save_model(self, state: dict[str, torch.Tensor]) -> Measurement:
        """Write the model, load it again and evaluate it: its weights were rounded to the dtype on disk."""
        self._monitor.progress("save", 0, 0)
        staging = self._out / ".saving"
        dtype = _DTYPES[self._options.save_dtype or self._source.weight_dtype]
        with disk_errors(self._out):
            write_model(staging, self._model, self._tokenizer, self._fields, dtype, state)
        saved = load_checkpoint(staging).model.to(self._args.device)
        measurement = measure(saved, find_ffns(saved), self._rows)
        self._monitor.evaluation("saved", measurement)
        move_into(staging, self._out)
        return measurement
