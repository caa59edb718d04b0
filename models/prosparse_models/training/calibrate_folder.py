"""Calibrate the FATReLU threshold of a model folder and write the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import find_ffns
from prosparse_models.loading.calibration_file import CALIBRATION_FILE
from prosparse_models.loading.checkpoint import load_checkpoint
from prosparse_models.loading.hub import find_model_folder
from prosparse_models.loading.substitution import saved_fields
from prosparse_models.loading.tokenizer import load_tokenizer
from prosparse_models.training.calibration import PAPER_THRESHOLDS, calibrate
from prosparse_models.training.calibration_record import calibration_record
from prosparse_models.training.saving import add_config_fields, copy_model_folder, write_json
from prosparse_models.training.training_text import TextSource, evaluation_rows

__all__ = ["CalibrateOptions", "calibrate_folder"]


@dataclass(frozen=True)
class CalibrateOptions:
    """Settings of a calibration.

    Attributes:
        text: files and folders with calibration text.
        text_column: column of JSONL and parquet.
        tokens: tokens of text.
        context: tokens per sequence.
        budget: allowed increase in perplexity, as a fraction.
        per_layer: one threshold per layer instead of one for all.
        thresholds: values to try besides the paper's.
        overwrite: replace the output folder.
        trust_remote_code: allow Python code in the model folder to run.
    """

    text: Sequence[Path]
    text_column: str = "text"
    tokens: int = 65_536
    context: int = 512
    budget: float = 0.01
    per_layer: bool = False
    thresholds: Sequence[float] = ()
    overwrite: bool = False
    trust_remote_code: bool = False


def calibrate_folder(
    model_dir: Path, out_dir: Path | None, options: CalibrateOptions, progress: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Calibrate the model in ``model_dir`` and write it, with the chosen threshold, to ``out_dir``.

    Args:
        model_dir: a model folder, or ORG/NAME on the Hugging Face Hub.
        out_dir: a new folder; ``model_dir`` itself, to change its config.json; or None, to write nothing.
        options: text, budget and search.
        progress: called with each stage.

    Returns:
        For JSON: ``budget``, ``perplexity_limit``, ``trials``, ``chosen``, ``hidden_act_param`` and ``written``.

    Raises:
        CheckpointError: the model folder cannot be loaded.
        TrainingError: text, context, model or output folder are unsuitable.
    """
    in_place = out_dir is not None and out_dir.resolve() == model_dir.resolve()
    _check_output(model_dir, out_dir, in_place=in_place, overwrite=options.overwrite)
    if not in_place:
        model_dir = find_model_folder(model_dir, trust_remote_code=options.trust_remote_code, progress=progress)
    progress("load text", 0, 0)
    source = TextSource.find(options.text, column=options.text_column)
    rows = evaluation_rows(source, load_tokenizer(model_dir), options.context, options.tokens)
    progress("load model", 0, 0)
    model = load_checkpoint(model_dir, trust_remote_code=options.trust_remote_code).model
    _check_context(model, options.context)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    result = calibrate(
        model,
        find_ffns(model),
        rows,
        budget=options.budget,
        per_layer=options.per_layer,
        candidates=(*PAPER_THRESHOLDS, *options.thresholds),
        progress=progress,
    )
    fields = saved_fields(model.config, "fatrelu", result.chosen.thresholds)
    chosen = fields["hidden_act_param"]
    record = calibration_record(result, budget=options.budget, per_layer=options.per_layer, hidden_act_param=chosen)
    if in_place:  # the record first: it is ignored until config.json has its threshold
        write_json(model_dir / CALIBRATION_FILE, record)
        add_config_fields(model_dir, fields)
    elif out_dir is not None:
        copy_model_folder(model_dir, out_dir, fields, {CALIBRATION_FILE: record})
    trials = [
        {"value": t.value, "thresholds": t.thresholds, "within": t.within, **t.measurement.as_dict()}
        for t in result.trials
    ]
    return {
        "budget": options.budget,
        "perplexity_limit": result.limit,
        "trials": trials,
        "chosen": trials[result.trials.index(result.chosen)],
        "hidden_act_param": chosen,
        "written": str(out_dir) if out_dir is not None else None,
    }


def _check_output(model_dir: Path, out_dir: Path | None, *, in_place: bool, overwrite: bool) -> None:
    if in_place and not model_dir.is_dir():
        raise TrainingError(
            f"model folder: {model_dir}: no such folder",
            hint="check the path: --in-place writes into an existing folder",
        )
    if out_dir is not None and not in_place and out_dir.exists() and not overwrite:
        raise TrainingError(f"output: {out_dir}: already exists", hint="choose another name or pass --overwrite")


def _check_context(model: PreTrainedModel, context: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise TrainingError(
            f"context: expected at most {longest} tokens, the model's max_position_embeddings, got {context}",
            hint=f"--context {longest}",
        )
