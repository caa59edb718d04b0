"""Stages of training and calibration, with their errors as the command line's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prosparse_export.errors import ProSparseError
from prosparse_export.quiet import quiet

__all__ = ["run_calibrate", "run_sparsify"]


def _require(*needed: str) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ProSparseError(
            f"training: expected the packages {', '.join(needed)}, got no {', '.join(missing)}",
            hint="pip install 'prosparse-export[train]'",
        )


def run_sparsify(
    model_dir: Path,
    out_dir: Path,
    *,
    recipe_name: str,
    settings: Sequence[str],
    stages: Sequence[tuple[float, int]],
    threads: int | None,
    monitor: Any,
    **options: Any,
) -> dict[str, Any] | None:
    """Run `prosparse_models.training.sparsify.sparsify`; None in all processes but the first.

    Raises:
        ProSparseError: what the user gave does not fit, or the extra [train] is not installed.
    """
    _require("accelerate", "datasets", "matplotlib")
    with quiet():
        import torch

        from prosparse_models.loading.hub import find_model_folder
        from prosparse_models.training.recipe import load_recipe, override
        from prosparse_models.training.sparsify import SparsifyOptions, sparsify

        if threads is not None:
            torch.set_num_threads(threads)
        recipe = override(load_recipe(recipe_name), settings, stages)
        folder = find_model_folder(
            model_dir, trust_remote_code=bool(options.get("trust_remote_code")), progress=monitor.status
        )
        summary = sparsify(folder, out_dir, recipe, SparsifyOptions(**options), monitor)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return summary if int(os.environ.get("RANK", "0")) == 0 else None


def run_calibrate(
    model_dir: Path,
    out_dir: Path | None,
    *,
    text: Sequence[Path],
    text_column: str,
    tokens: int,
    context: int,
    budget: float,
    per_layer: bool,
    thresholds: Sequence[float],
    overwrite: bool,
    threads: int | None,
    trust_remote_code: bool,
    monitor: Any,
) -> dict[str, Any]:
    """Calibrate ``model_dir`` and write threshold and trials to ``out_dir`` (may be ``model_dir``), or nowhere.

    Raises:
        ProSparseError: what the user gave does not fit, or the extra [train] is not installed.
    """
    in_place = out_dir is not None and out_dir.resolve() == model_dir.resolve()
    if in_place and not model_dir.is_dir():
        raise ProSparseError(
            f"model folder: {model_dir}: expected a folder to write the threshold into, got nothing there",
            hint="give OUT_DIR instead of --in-place, or check the path",
        )
    if out_dir is not None and not in_place and out_dir.exists() and not overwrite:
        raise ProSparseError(f"output: {out_dir}: expected nothing there, got a folder or file", hint="--overwrite")
    _require("datasets")
    with quiet():
        import torch

        from prosparse_models import find_ffns, load_checkpoint
        from prosparse_models.loading.calibration_file import CALIBRATION_FILE
        from prosparse_models.loading.hub import find_model_folder
        from prosparse_models.loading.substitution import saved_fields
        from prosparse_models.loading.tokenizer import load_tokenizer
        from prosparse_models.training.calibration import PAPER_THRESHOLDS, calibrate
        from prosparse_models.training.calibration_record import calibration_record
        from prosparse_models.training.saving import add_config_fields, copy_model_folder, write_json
        from prosparse_models.training.training_text import TextSource, evaluation_rows

        if threads is not None:
            torch.set_num_threads(threads)
        if not in_place:
            model_dir = find_model_folder(model_dir, trust_remote_code=trust_remote_code, progress=monitor.status)
        tokenizer = load_tokenizer(model_dir)
        rows = evaluation_rows(TextSource.find(text, column=text_column), tokenizer, context, tokens)
        monitor.status("load model")
        model = load_checkpoint(model_dir, trust_remote_code=trust_remote_code).model
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and context > longest:
            raise ProSparseError(
                f"context: expected at most {longest} tokens, the model's max_position_embeddings, got {context}",
                hint=f"--context {longest}",
            )
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        candidates = (*PAPER_THRESHOLDS, *thresholds)
        options = {"budget": budget, "per_layer": per_layer, "candidates": candidates, "progress": monitor.status}
        result = calibrate(model, find_ffns(model), rows, **options)
        fields = saved_fields(model.config, "fatrelu", result.chosen.thresholds)
        chosen = fields["hidden_act_param"]
        record = calibration_record(result, budget=budget, per_layer=per_layer, hidden_act_param=chosen)
        if in_place:  # the record first: while config.json says something else, nobody takes it
            write_json(model_dir / CALIBRATION_FILE, record)
            add_config_fields(model_dir, fields)
        elif out_dir is not None:
            copy_model_folder(model_dir, out_dir, fields, {CALIBRATION_FILE: record})
    trials = [
        {"value": t.value, "thresholds": t.thresholds, "within": t.within, **t.measurement.as_dict()}
        for t in result.trials
    ]
    return {
        "budget": budget,
        "perplexity_limit": result.limit,
        "trials": trials,
        "chosen": trials[result.trials.index(result.chosen)],
        "hidden_act_param": chosen,
        "written": str(out_dir) if out_dir is not None else None,
    }
