"""Choose how each matrix is stored: its format by rule, which of its input channels matter most, and its rounding."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from transformers.pytorch_utils import Conv1D

from graph_passes import FORMAT_SPECS, FfnFormat, Format, WeightPlan, format_of, is_quantized
from graph_passes.patterns.ffn_pattern import find_ffns
from prosparse_export.artifact.rounding_records import FormatCost, RoundingRecord
from prosparse_export.errors import ProSparseError
from prosparse_export.export.compensated_rounding import NarrowMatrix, compensated_matrices
from prosparse_export.export.format_budget import choose_exceptions, held_back, parts_within_size
from prosparse_export.export.input_moments import calibration_documents, input_moments
from prosparse_export.export.mixed_precision import PartRounding, embedding_and_head
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.rounded_reference import checkpoint_format
from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_export.text import Document
from prosparse_models import Checkpoint

__all__ = [
    "narrow_matrices",
    "plan_by_rule",
    "plan_weights",
    "rounds_compensating",
    "short_text_warnings",
    "sparse_ffns",
]

_NARROW = 0.5  # of its input's width
_WINDOW = 256  # tokens


def plan_weights(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    texts: Sequence[tuple[str, str]],
    progress: ProgressCallback,
    *,
    graph: ir.Graph,
    dense: Collection[str] = (),
) -> tuple[WeightPlan, RoundingRecord | None]:
    """Return how each matrix is stored and, for integer formats, what that was measured on.

    Args:
        checkpoint: the model; its matrices may be in their files.
        folder: its folder, for the tokenizer.
        options: see `ExportOptions`.
        texts: (name, contents) of ``options.profile_texts``; if empty, bundled text is used.
        progress: called with each stage.
        graph: the traced graph, before the passes.
        dense: module paths of the down_proj of FFNs that stay dense.

    Raises:
        ProSparseError: compensated rounding or a budget was asked for, and there is no text, no matrix in 4 bits,
            or nothing meets the budget.
    """
    plan = plan_by_rule(checkpoint, options)
    ffns = sparse_ffns(graph, dense)
    matrices = narrow_matrices(checkpoint, plan, ffns)
    if not matrices and (options.rounding == "compensated" or options.has_budget):
        raise ProSparseError(f"weights: {folder}: expected matrices in 4 bits, got none", hint="pass --weights nl4")
    if not _quantizes(plan):
        return plan, None
    compensates = bool(matrices) and rounds_compensating(options, texts)
    documents = calibration_documents(checkpoint, folder, texts, compensates=compensates)
    if documents is None:
        if options.rounding == "compensated" or options.has_budget:
            raise ProSparseError(
                f"weights: {folder}: expected a tokenizer that fits the model, got none",
                hint="compensated rounding and budgets measure on text: add the tokenizer's files",
            )
        return plan, RoundingRecord({}, 0)
    compensates = compensates and _is_long_enough(documents, options)
    hashes = {document.name: document.sha256 for document in documents}
    costs: tuple[FormatCost, ...] = ()
    if options.has_budget:
        parts, left = parts_within_size(checkpoint, folder, options, ffns, matrices)
        first, rest = held_back(documents, checkpoint.config)
        documents = tuple(first)
    moments = input_moments(checkpoint, documents, progress)
    plan = replace(plan, importance=moments.by_module)
    if options.has_budget:
        rounding = PartRounding(moments.by_module, {name for name, matrix in matrices.items() if matrix.is_down})
        budget = choose_exceptions(checkpoint, folder, options, parts, left, rounding, rest, progress)
        plan, costs = replace(plan, exceptions=budget.exceptions), budget.costs
        matrices = narrow_matrices(checkpoint, plan, ffns)
    if compensates and matrices:  # a budget may have stored all of them in i8
        plan = replace(plan, rounded=compensated_matrices(checkpoint, documents, matrices, progress))
    return plan, RoundingRecord(hashes, moments.tokens, tuple(plan.rounded), costs)


def rounds_compensating(options: ExportOptions, texts: Collection[object]) -> bool:
    """Return whether 4 bits are rounded with compensation: if asked for, or by default if work takes minutes anyway."""
    if options.rounding is None:
        return bool(texts) or options.has_budget
    return options.rounding == "compensated"


def short_text_warnings(record: RoundingRecord, plan: WeightPlan, options: ExportOptions) -> list[str]:
    """Return a line for the user if 4 bits are rounded to nearest because the text is too short."""
    if record.compensated or not options.profile_texts or options.rounding is not None or options.has_budget:
        return []
    if all(FORMAT_SPECS[format_of(name, is_down=False)].bits != 4 for name in (plan.ffn, plan.other)):
        return []
    return [
        f"profile text: expected at least {_WINDOW} tokens for compensated rounding, got {record.tokens}: "
        "4 bits are rounded to nearest"
    ]


def _is_long_enough(documents: Sequence[Document], options: ExportOptions) -> bool:
    """Return whether a text says anything about how inputs vary together."""
    tokens = sum(len(document.ids) for document in documents)
    if tokens < _WINDOW and options.rounding == "compensated":
        raise ProSparseError(
            f"profile text: expected at least {_WINDOW} tokens for compensated rounding, got {tokens}",
            hint="pass more text, or --rounding nearest",
        )
    return tokens >= _WINDOW


def sparse_ffns(graph: ir.Graph, dense: Collection[str] = ()) -> list[list[str]]:
    """Return the FFNs that the passes will rewrite: module paths of their projections, down_proj last.

    Args:
        graph: the traced graph, before the passes.
        dense: module paths of the down_proj of FFNs that stay dense.
    """
    return [
        [linear.module for linear in (match.gate, match.up, match.down) if linear is not None]
        for match in find_ffns(graph)
        if not match.reason and match.down is not None and match.down.module not in dense
    ]


def narrow_matrices(checkpoint: Checkpoint, plan: WeightPlan, ffns: Sequence[Sequence[str]]) -> dict[str, NarrowMatrix]:
    """Return the projections that are stored in 4 bits, by module path.

    lm_head is not among them.

    Args:
        checkpoint: the model.
        plan: its formats.
        ffns: from `sparse_ffns`.
    """
    formats: dict[str, tuple[Format, bool]] = {}
    for modules in ffns:
        chosen = plan.ffn_format(modules)
        for module in modules:
            is_down = module == modules[-1]
            formats[module] = format_of(chosen, is_down=is_down), is_down
    last = checkpoint.model.get_output_embeddings()
    found = {}
    for name, module in checkpoint.model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not last:
            weights, is_down = formats.get(name, (plan.linear_format(name), False))
            if FORMAT_SPECS[weights].bits == 4:
                found[name] = NarrowMatrix(weights, is_down)
    return found


def plan_by_rule(checkpoint: Checkpoint, options: ExportOptions) -> WeightPlan:
    """Return the formats that ``options`` ask for.

    With 4 bits, and unless ``options`` name a format for the matrices outside the FFNs, those that cost most for
    their size are stored in i8:

    1. the embedding and lm_head: every token passes them, and their errors reach the logits directly;
    2. v_proj where several query heads share a value head, so that it is narrow: what its few weights lose, no other
       projection of attention averages out.
    """
    weights: FfnFormat = options.weights or checkpoint_format(checkpoint.weight_dtype)
    other = options.other_weights or format_of(weights, is_down=False)
    by_rule = FORMAT_SPECS[other].bits == 4 and options.other_weights is None and not options.has_budget
    exceptions = _exceptions(checkpoint) if by_rule else {}
    return WeightPlan(weights, other, exceptions, rounding=library_rounding())


def _quantizes(plan: WeightPlan) -> bool:
    """Return whether some matrix is stored in an integer format."""
    return any(is_quantized(weights) for weights in (plan.ffn, plan.other, *plan.exceptions.values()))


def _exceptions(checkpoint: Checkpoint) -> dict[str, Format]:
    model = checkpoint.model
    ends = embedding_and_head(model)
    found: dict[str, Format] = {}
    for name, module in model.named_modules():
        is_narrow_value = (
            name.rpartition(".")[2] == "v_proj"
            and isinstance(module, torch.nn.Linear)
            and module.out_features <= _NARROW * module.in_features
        )
        if module in ends or is_narrow_value:
            found[name] = "i8"
    return found
