"""Choose how each matrix is stored: its format by rule, and which of its input channels matter most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from graph_passes import FfnFormat, Format, WeightPlan, format_of, is_quantized
from prosparse_export.artifact.measured_records import RoundingRecord
from prosparse_export.export.input_moments import calibration_documents, input_moments
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.rounded_reference import checkpoint_format
from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_models import Checkpoint

__all__ = ["plan_by_rule", "plan_weights"]

_NARROW = 0.5  # of its input's width


def plan_weights(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    texts: Sequence[tuple[str, str]],
    progress: ProgressCallback,
) -> tuple[WeightPlan, RoundingRecord | None]:
    """Return how each matrix is stored and, for integer formats, what that was measured on.

    Args:
        checkpoint: the model; its matrices may be in their files.
        folder: its folder, for the tokenizer.
        options: see `ExportOptions`.
        texts: (name, contents) of ``options.profile_texts``; if empty, bundled text is used.
        progress: called with each stage.
    """
    plan = plan_by_rule(checkpoint, options)
    if not _quantizes(plan):
        return plan, None
    documents = calibration_documents(checkpoint, folder, texts)
    if documents is None:
        return plan, RoundingRecord({}, 0)
    moments = input_moments(checkpoint, documents, progress)
    record = RoundingRecord({document.name: document.sha256 for document in documents}, moments.tokens)
    return replace(plan, importance=moments.by_module), record


def plan_by_rule(checkpoint: Checkpoint, options: ExportOptions) -> WeightPlan:
    """Return the formats that ``options`` ask for.

    With i4 and i4i8, and unless ``options`` name a format for the matrices outside the FFNs, those that cost most for
    their size are stored in i8:

    1. the embedding and lm_head: every token passes them, and their errors reach the logits directly;
    2. v_proj where several query heads share a value head, so that it is narrow: what its few weights lose, no other
       projection of attention averages out.
    """
    weights: FfnFormat = options.weights or checkpoint_format(checkpoint.weight_dtype)
    other = options.other_weights or format_of(weights, is_down=False)
    exceptions = _exceptions(checkpoint) if other == "i4" and options.other_weights is None else {}
    return WeightPlan(weights, other, exceptions, rounding=library_rounding())


def _quantizes(plan: WeightPlan) -> bool:
    """Return whether some matrix is stored in an integer format."""
    return any(is_quantized(weights) for weights in (plan.ffn, plan.other, *plan.exceptions.values()))


def _exceptions(checkpoint: Checkpoint) -> dict[str, Format]:
    model = checkpoint.model
    ends = {
        id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None
    }
    found: dict[str, Format] = {}
    for name, module in model.named_modules():
        is_narrow_value = (
            name.rpartition(".")[2] == "v_proj"
            and isinstance(module, torch.nn.Linear)
            and module.out_features <= _NARROW * module.in_features
        )
        if id(module) in ends or is_narrow_value:
            found[name] = "i8"
    return found
