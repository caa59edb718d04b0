"""Training-free sparsity for SwiGLU models (lossy): thresholds from text, and their cost in perplexity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.errors import ProSparseError
from prosparse_export.export.options import Approximation
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.text import read_text, tokenize
from prosparse_models.approximation import apply_thresholded_silu, silu_ffns, silu_thresholds
from prosparse_models.errors import TrainingError
from prosparse_models.loading.tokenizer import load_tokenizer
from prosparse_models.sparsity import measure

__all__ = ["approximate", "approximate_again"]

_CONTEXT, _LEAST = 512, 8  # tokens per row; least tokens per row


def approximate(
    model: PreTrainedModel, folder: Path, wanted: Approximation, progress: ProgressCallback
) -> ApproximationRecord:
    """Put thresholds into the FFNs of ``model`` and return them with their cost.

    Even rows of the text set the thresholds; perplexity before and after is measured on the odd rows.

    Raises:
        ProSparseError: the text cannot be used, or the model is not a SwiGLU model.
    """
    rows, digests = _rows(model, folder, wanted)
    calibration, held_out = rows[::2], rows[1::2]
    with quiet():
        ffns = silu_ffns(model)
        thresholds = silu_thresholds(model, ffns, calibration, wanted.keep, progress)
        dense = measure(model, ffns, held_out, batch=1, stage="perplexity, dense", progress=progress)
        apply_thresholded_silu(ffns, thresholds)
        sparse = measure(model, ffns, held_out, batch=1, stage="perplexity, approximated", progress=progress)
    return ApproximationRecord(
        activation=wanted.activation,
        keep=wanted.keep,
        thresholds=tuple(thresholds),
        texts=digests,
        calibration_tokens=sum(map(len, calibration)),
        perplexity_tokens=sum(map(len, held_out)),
        dense_perplexity=dense.perplexity,
        perplexity=sparse.perplexity,
        sparsity=sparse.sparsity,
        sparsity_by_layer=tuple(sparse.sparsity_by_layer),
    )


def approximate_again(model: PreTrainedModel, recorded: ApproximationRecord) -> None:
    """Apply the thresholds that a manifest records to ``model``.

    Raises:
        ProSparseError: the manifest is of another model.
    """
    try:
        with quiet():
            apply_thresholded_silu(silu_ffns(model), recorded.thresholds)
    except (TrainingError, ValueError) as error:
        raise ProSparseError(
            f"approximation: prosparse.json belongs to another model: {error}",
            hint="pass the model folder that the artifact was exported from, or export again",
        ) from error


def _rows(model: PreTrainedModel, folder: Path, wanted: Approximation) -> tuple[list[torch.Tensor], dict[str, str]]:
    """Return the text as at least two rows of equal length, and the files' SHA-256."""
    texts = [(str(path), read_text(path)) for path in wanted.texts]
    with quiet():
        documents = tokenize(load_tokenizer(folder), texts, wanted.tokens)
    joined = torch.cat([torch.from_numpy(document.ids) for document in documents])
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _CONTEXT
    context = min(_CONTEXT, limit, len(joined) // 2)
    if context < _LEAST:
        raise ProSparseError(
            f"approximation: {texts[0][0]}: expected at least {2 * _LEAST} tokens, got {len(joined)}",
            hint="pass more text with --profile-text FILE",
        )
    rows = list(joined[: len(joined) // context * context].reshape(-1, context))
    return rows, _digests(wanted.texts)


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
