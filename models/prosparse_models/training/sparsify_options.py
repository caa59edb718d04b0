"""Options of a training run, and the checks that need no model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosparse_models.errors import TrainingError
from prosparse_models.training.recipe import Recipe
from prosparse_models.training.training_text import TextSource

__all__ = ["SparsifyOptions", "check_devices", "check_target", "prepare_output", "text_sources"]


@dataclass(frozen=True)
class SparsifyOptions:
    """Settings of a run besides model, recipe and output folder.

    Attributes:
        text: files and folders to train on.
        eval_text: files and folders to evaluate on; empty: hold out one document in 50 of ``text``.
        text_column: column of JSONL and parquet.
        eval_tokens: tokens to evaluate on.
        target_sparsity: adjust lambda to reach this activation sparsity, 0 to 1; None: follow the recipe.
        log_every: optimizer steps between training records.
        save_every: optimizer steps between checkpoints, in addition to those at the ends of stages.
        keep_checkpoints: number of checkpoints to keep.
        save_dtype: float32, bfloat16 or float16, on disk; None: as in the model folder.
        resume: continue from the newest complete checkpoint.
        replan: with ``resume``: allow other stages after that checkpoint.
        overwrite: replace the contents of the output folder.
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


def text_sources(options: SparsifyOptions) -> tuple[TextSource, TextSource]:
    """Return the text to train on and the text to evaluate on.

    Raises:
        TrainingError: a path does not exist or has no text files.
    """
    column = options.text_column
    if options.eval_text:
        return TextSource.find(options.text, column=column), TextSource.find(options.eval_text, column=column)
    train = TextSource.find(options.text, column=column, held_out=False)
    return train, TextSource.find(options.text, column=column, held_out=True)


def prepare_output(out: Path, model_dir: Path, options: SparsifyOptions) -> None:
    """Check the output folder, and remove old checkpoints if they are to be overwritten.

    Raises:
        TrainingError: it is the model folder, a file, or not empty.
    """
    if out.resolve() == model_dir.resolve():
        raise TrainingError(f"output: {out}: expected a folder other than the model's", hint="choose a new folder")
    if out.exists() and not out.is_dir():
        raise TrainingError(f"output: {out}: expected a folder, got a file", hint="choose a new folder")
    if options.resume or not out.is_dir() or not any(out.iterdir()):
        return
    if not options.overwrite:
        raise TrainingError(
            f"output: {out}: expected an empty folder, got one with files",
            hint="pass --overwrite to replace them, or --resume to continue an interrupted run",
        )
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def check_target(recipe: Recipe, target_sparsity: float | None) -> None:
    """Raise TrainingError if lambda cannot be adjusted because the recipe has too few stages."""
    if target_sparsity is not None and len(recipe.stages) < 4:
        raise TrainingError(
            f"recipe: stages: expected at least 4 with a target sparsity, got {len(recipe.stages)}: lambda is adjusted "
            "after stage 2, for the stages that follow",
            hint="add stages with --stage, or omit --target-sparsity",
        )


def check_devices(args: Any) -> None:
    """Raise TrainingError if one process has several GPUs: Trainer would replicate the hooks in threads."""
    if args.n_gpu > 1:
        raise TrainingError(
            f"training: expected one GPU per process, got {args.n_gpu}",
            hint=f"torchrun --nproc-per-node {args.n_gpu} -m prosparse_export sparsify ..., or CUDA_VISIBLE_DEVICES=0",
        )
