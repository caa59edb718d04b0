"""The whole method on a model folder: substitute, train on with the progressive L1, save, measure."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn, find_ffns
from prosparse_models.loading.checkpoint import load_checkpoint
from prosparse_models.loading.substitution import saved_fields, substitute_activation
from prosparse_models.loading.tokenizer import load_tokenizer
from prosparse_models.sparsity import Measurement, measure
from prosparse_models.training.distillation import recover_layers
from prosparse_models.training.recipe import Recipe
from prosparse_models.training.saving import move_into, write_json, write_model
from prosparse_models.training.sparsify_callback import SparsifyCallback, last_checkpoint
from prosparse_models.training.trainer import ProSparseTrainer, collate, sum_over_processes, training_arguments
from prosparse_models.training.training_plot import plot_training
from prosparse_models.training.training_text import PackedText, TextSource, evaluation_rows

__all__ = ["Monitor", "SparsifyOptions", "sparsify"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Monitor(Protocol):
    """Is told how a run goes on; only in the first process."""

    def status(self, text: str) -> None:
        """What is being done now."""

    def record(self, record: dict[str, Any], steps: int) -> None:
        """A training record: step, loss, lambda, sparsity_by_layer, perplexity ..."""

    def evaluation(self, when: str, measurement: Measurement) -> None:
        """The model was measured on held-out text."""


@dataclass(frozen=True)
class SparsifyOptions:
    """What a run needs besides model, recipe and output folder.

    Attributes:
        text: files and folders to train on.
        eval_text: files and folders to measure on; none holds out one document in 50 of ``text``.
        text_column: column of JSONL and parquet.
        eval_tokens: tokens to measure on.
        target_sparsity: steer lambda to this share of zeros; None leaves the recipe's peaks.
        log_every: optimizer steps between training records.
        save_every: optimizer steps between checkpoints, besides those at the ends of stages.
        keep_checkpoints: older ones are removed.
        save_dtype: float32, bfloat16 or float16, on disk; None: as in the model folder.
        resume: go on from the newest complete checkpoint.
        replan: with ``resume``: the stages after that checkpoint may be others, the run shorter or longer.
        overwrite: replace what is in the output folder.
        trust_remote_code: allow Python code in the model folder to run.
    """

    text: Sequence[Path]
    eval_text: Sequence[Path] = ()
    text_column: str = "text"
    eval_tokens: int = 65_536
    target_sparsity: float | None = None
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2
    save_dtype: str | None = None
    resume: bool = False
    replan: bool = False
    overwrite: bool = False
    trust_remote_code: bool = False


def sparsify(model_dir: Path, out: Path, recipe: Recipe, options: SparsifyOptions, monitor: Monitor) -> dict[str, Any]:
    """Train the model in ``model_dir`` to be sparse and write it to ``out``.

    ``out`` gets the model folder, sparsify.json (recipe, evaluations, records), training.png, and
    checkpoints/. Under torchrun or accelerate launch every process calls this; the first one writes.

    Returns:
        What sparsify.json holds.

    Raises:
        CheckpointError: the model folder cannot be read.
        TrainingError: text, recipe or output folder do not fit, or the loss is not finite.
    """
    checkpoints = out / "checkpoints"
    _check_output(out, model_dir, options)
    _check_target(recipe, options)
    args = training_arguments(
        recipe,
        str(checkpoints),
        logging_steps=options.log_every,
        logging_first_step=True,
        save_steps=options.save_every,
        save_total_limit=options.keep_checkpoints,
        use_cpu=not torch.cuda.is_available(),  # Apple's GPU has no float64, in which the sums are kept
    )
    _check_devices(args)
    first = args.process_index == 0
    found = None
    if options.resume:
        found = last_checkpoint(checkpoints, recipe, options.target_sparsity, replan=options.replan)
    say: Monitor = monitor if first else _Silent()

    say.status("load text")
    tokenizer = load_tokenizer(model_dir)
    train, held_out = _sources(options)
    rows = evaluation_rows(held_out, tokenizer, recipe.training.context, options.eval_tokens)
    stream = PackedText(train, tokenizer, recipe.training.context, recipe.training.seed)
    next(iter(stream))  # too little text is refused before the model is loaded

    say.status("load model")
    checkpoint = load_checkpoint(model_dir, trust_remote_code=options.trust_remote_code)
    model, ffns = checkpoint.model, find_ffns(checkpoint.model)
    _check_context(model, recipe)
    d = recipe.distillation
    teacher = copy.deepcopy(model) if d.logit_weight > 0 or (d.layer_steps > 0 and not found) else None
    model.to(args.device)

    def evaluate(of: PreTrainedModel | None = None) -> Measurement:
        share = {"rank": args.process_index, "world_size": args.world_size, "reduce": sum_over_processes}
        return measure(of or trainer.model_wrapped, ffns, rows, batch=max(1, recipe.training.micro_batch), **share)

    evaluations: list[dict[str, Any]] = found[1]["evaluations"] if found else []
    records: list[dict[str, Any]] = found[1]["records"] if found else []

    def evaluated(when: str, measurement: Measurement) -> None:
        evaluations.append({"when": when, "step": 0, "lambda": 0.0, **measurement.as_dict()})
        say.evaluation(when, measurement)

    if not found:
        say.status("evaluate before")
        evaluated("before", evaluate(model))
    substitute_activation(model, ffns, recipe.activation, recipe.threshold)
    if not found and recipe.activation != "keep":
        say.status("evaluate after substitution")
        evaluated("substituted", evaluate(model))
    if teacher is not None and d.layer_steps > 0 and not found:
        say.status(f"layer recovery, {d.layer_steps} steps")
        _recover(teacher.to(args.device), ffns, stream, recipe, args, say)
        evaluated("layer recovery", evaluate(model))

    stages = [(float(peak), int(last)) for peak, last in found[1]["stages"]] if found else list(recipe.stages)
    fields = saved_fields(model.config, recipe.activation, [recipe.threshold], checkpoint.config)
    if getattr(model.config, "use_cache", None) is True:
        fields["use_cache"] = True  # Trainer turns it off while it trains
    callback = SparsifyCallback(
        recipe,
        stages,
        evaluate,
        fields=fields,
        target=options.target_sparsity,
        records=records,
        evaluations=evaluations,
        on_record=lambda record: say.record(record, recipe.steps),
        on_evaluation=say.evaluation,
    )
    trainer = ProSparseTrainer(model, ffns, recipe, args, stream, stages=stages, teacher=teacher, callbacks=[callback])
    trainer.data_collator = collate
    trainer.remove_callback(PrinterCallback)
    say.status("train")
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    seconds = time.monotonic() - began

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what FSDP has sharded
    summary: dict[str, Any] = {
        "recipe": recipe.as_dict(),
        "target_sparsity": options.target_sparsity,
        "stages": [list(stage) for stage in stages],
        "tokens": recipe.steps * recipe.training.sequences_per_step * recipe.training.context,
        "seconds": round(seconds, 1),
        "processes": args.world_size,
        "resumed": found is not None,
        "evaluations": evaluations,
        "records": records,
    }
    if first:
        dtype = _DTYPES[options.save_dtype or checkpoint.weight_dtype]
        saved = _save(out, model, tokenizer, fields, dtype, state, rows, args.device, say)
        evaluations.append({"when": "saved", "step": recipe.steps, "lambda": stages[-1][0], **saved.as_dict()})
        write_json(out / "sparsify.json", summary)
        plot_training(records, [last for _, last in stages], out / "training.png")
    trainer.accelerator.wait_for_everyone()
    return summary


def _save(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fields: dict[str, Any],
    dtype: torch.dtype,
    state: dict[str, torch.Tensor],
    rows: Sequence[torch.Tensor],
    device: torch.device,
    say: Monitor,
) -> Measurement:
    """Write the model and measure what was written: rounded weights, read back."""
    say.status("save")
    staging = out / ".saving"
    write_model(staging, model, tokenizer, fields, dtype, state)
    saved = load_checkpoint(staging).model.to(device)
    measurement = measure(saved, find_ffns(saved), rows)
    say.evaluation("saved", measurement)
    move_into(staging, out)
    return measurement


def _recover(
    teacher: PreTrainedModel, ffns: Sequence[Ffn], stream: PackedText, recipe: Recipe, args: Any, say: Monitor
) -> None:
    d = recipe.distillation

    def report(done: int, total: int, error: float) -> None:
        if done % max(1, total // 10) == 0:
            say.status(f"layer recovery, step {done} of {total}: relative squared error {error:.4f}")

    loader = DataLoader(stream, batch_size=recipe.training.micro_batch, collate_fn=collate)
    own: Iterator[Any] = islice(iter(loader), args.process_index, None, args.world_size)
    recover_layers(
        teacher,
        find_ffns(teacher),
        ffns,
        own,
        steps=d.layer_steps,
        learning_rate=d.layer_learning_rate,
        device=args.device,
        progress=report,
    )


def _sources(options: SparsifyOptions) -> tuple[TextSource, TextSource]:
    column = options.text_column
    if options.eval_text:
        return TextSource.find(options.text, column=column), TextSource.find(options.eval_text, column=column)
    train = TextSource.find(options.text, column=column, held_out=False)
    return train, TextSource.find(options.text, column=column, held_out=True)


def _check_output(out: Path, model_dir: Path, options: SparsifyOptions) -> None:
    if out.resolve() == model_dir.resolve():
        raise TrainingError(f"output: {out}: expected another folder than the model's", hint="name a new folder")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"output: {out}: expected a folder, got a file", hint="name a new folder")
    if options.resume or not out.is_dir() or not any(out.iterdir()):
        return
    if not options.overwrite:
        raise TrainingError(
            f"output: {out}: expected an empty folder, got one with files",
            hint="--overwrite replaces them, --resume goes on with an interrupted run",
        )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _check_devices(args: Any) -> None:
    if args.n_gpu > 1:  # Trainer would take them all by threads, which share the hooks
        raise TrainingError(
            f"training: expected one GPU a process, got {args.n_gpu} in one",
            hint=f"torchrun --nproc-per-node {args.n_gpu} -m prosparse_export sparsify ..., or CUDA_VISIBLE_DEVICES=0",
        )


def _check_target(recipe: Recipe, options: SparsifyOptions) -> None:
    if options.target_sparsity is not None and len(recipe.stages) < 4:
        raise TrainingError(
            f"recipe: stages: expected at least 4 with a target sparsity, got {len(recipe.stages)}: lambda is steered "
            "after stage 2, for the stages that follow",
            hint="add stages with --stage, or leave out --target-sparsity",
        )


def _check_context(model: PreTrainedModel, recipe: Recipe) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and recipe.training.context > longest:
        raise TrainingError(
            f"recipe: training.context: expected at most the model's {longest} positions, "
            f"got {recipe.training.context}",
            hint=f"--set training.context={longest}",
        )


class _Silent:
    def status(self, text: str) -> None: ...

    def record(self, record: dict[str, Any], steps: int) -> None: ...

    def evaluation(self, when: str, measurement: Measurement) -> None: ...
