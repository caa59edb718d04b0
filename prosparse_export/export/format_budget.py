"""``--target-size`` and ``--max-ppl-increase``: which matrices of a 4-bit model get 8 bits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from graph_passes import Format
from prosparse_export.artifact.model_settings import context_in
from prosparse_export.artifact.rounding_records import FormatCost
from prosparse_export.errors import ProSparseError
from prosparse_export.export.input_moments import token_rows
from prosparse_export.export.mixed_precision import (
    Part,
    PartRounding,
    find_parts,
    matrix_bytes,
    mean_nll,
    measure_costs,
    widest_gains,
)
from prosparse_export.export.options import ExportOptions
from prosparse_export.progress import ProgressCallback
from prosparse_export.text import Document
from prosparse_models import Checkpoint

__all__ = ["Budget", "choose_exceptions", "held_back", "parts_within_size"]

_ROW, _MEASURED, _LIMITED = 256, 2, 4  # tokens of a row; such rows to measure parts on, and a perplexity limit
_ROPE_BYTES = 128 << 20  # cos/sin caches are not larger: graph_passes/patterns/rope_cache.py
_GRAPH_BYTES, _TENSOR_BYTES = 1 << 18, 2048  # nodes, and what alignment adds to a tensor


@dataclass(frozen=True)
class Budget:
    """The formats that fit a budget.

    Attributes:
        exceptions: the matrices in i8, by module path.
        costs: what each part costs in 4 bits, in the order in which bytes are spent, and how it is stored.
    """

    exceptions: Mapping[str, Format]
    costs: tuple[FormatCost, ...]


def held_back(documents: Sequence[Document], config: Mapping[str, Any]) -> tuple[list[Document], torch.Tensor]:
    """Return the text without some last tokens, and those as ``[rows, tokens]``: rounding must not see them.

    Every document gives rows in proportion to its length, or the last ones give all, if that leaves too few.

    Args:
        documents: the text.
        config: config.json, whose context may be shorter than 256 tokens, the length of a row.

    Raises:
        ProSparseError: the text is too short.
    """
    ids = np.concatenate([document.ids for document in documents])
    rows = min(_LIMITED, len(ids) // (2 * _ROW))
    if rows < 1:
        raise ProSparseError(
            f"profile text: expected at least {2 * _ROW} tokens to choose formats on, got {len(ids)}",
            hint="pass more text with --profile-text",
        )
    taken = _rows_by_document(documents, rows)
    cuts = [len(document.ids) - count for document, count in zip(documents, taken, strict=True)]
    kept = [Document(document.name, document.ids[:cut]) for document, cut in zip(documents, cuts, strict=True)]
    rest = np.concatenate([document.ids[cut:] for document, cut in zip(documents, cuts, strict=True)])
    last = token_rows([Document("", rest)], config)
    return [document for document in kept if len(document.ids)], torch.from_numpy(np.stack(last))


def _rows_by_document(documents: Sequence[Document], rows: int) -> list[int]:
    """Return how many tokens to take from the end of each document, ``rows * 256`` in all."""
    lengths = [len(document.ids) for document in documents]
    taken = [0] * len(documents)
    for _ in range(rows):
        best = max(range(len(documents)), key=lambda i: lengths[i] / (taken[i] + _ROW))
        taken[best] += _ROW
    if all(count < length for count, length in zip(taken, lengths, strict=True) if count):
        return taken
    left = rows * _ROW
    for i in reversed(range(len(documents))):
        taken[i] = min(left, lengths[i])
        left -= taken[i]
    return taken


def parts_within_size(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    ffns: Sequence[Sequence[str]],
    matrices: Collection[str],
) -> tuple[list[Part], int]:
    """Return the model's parts, and the bytes that ``target_bytes`` leaves beyond all of them in 4 bits (0 without it).

    Args:
        checkpoint: the model.
        folder: its folder, for messages.
        options: with ``target_bytes`` or ``max_ppl_increase``.
        ffns: module paths of each rewritten FFN's projections, down_proj last.
        matrices: from `narrow_matrices`.

    Raises:
        ProSparseError: nothing is left.
    """
    narrow = cast("Format", options.weights)
    parts = find_parts(checkpoint.model, matrices, ffns, narrow)
    if options.target_bytes is None:
        return parts, 0
    smallest = matrix_bytes(parts) + _other_bytes(checkpoint, parts)
    if smallest > options.target_bytes:
        raise ProSparseError(
            f"target size: {folder}: {narrow} takes {smallest / 1e6:.1f} MB, got {options.target_bytes / 1e6:.1f} MB",
            hint=f"pass --target-size {-(-smallest // 10**6) + 1}MB or more",
        )
    return parts, options.target_bytes - smallest


def choose_exceptions(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    parts: Sequence[Part],
    left: int,
    rounding: PartRounding,
    ids: torch.Tensor,
    progress: ProgressCallback,
) -> Budget:
    """Return which matrices get 8 bits within the size or perplexity that ``options`` ask for.

    Args:
        checkpoint: the model.
        folder: its folder, for messages.
        options: with ``target_bytes`` or ``max_ppl_increase``.
        parts: from `parts_within_size`.
        left: likewise.
        rounding: how they are rounded while they are measured.
        ids: from `held_back`.
        progress: called with each part.

    Raises:
        ProSparseError: nothing meets the budget.
    """
    some = ids[: max(1, _MEASURED * _ROW // ids.shape[1])]
    order = list(widest_gains(measure_costs(checkpoint, parts, some, rounding, progress)))
    if options.target_bytes is not None:
        wide = _within_size(order, left)
    else:
        assert options.max_ppl_increase is not None
        limit = options.max_ppl_increase
        wide = _within_perplexity(checkpoint, folder, order, ids, rounding, limit, progress)
    costs = tuple(
        FormatCost(part.name, part.kl, part.more_bytes, "i8" if part in wide else part.narrow) for part in order
    )
    return Budget({name: "i8" for part in wide for name in part.modules}, costs)


def _within_size(order: Sequence[Part], left: int) -> list[Part]:
    wide: list[Part] = []
    for part in order:
        if part.more_bytes <= left and (not part.needs or any(w.name == part.needs for w in wide)):
            wide.append(part)
            left -= part.more_bytes
    return wide


def _within_perplexity(
    checkpoint: Checkpoint,
    folder: Path,
    order: Sequence[Part],
    ids: torch.Tensor,
    rounding: PartRounding,
    limit: float,
    progress: ProgressCallback,
) -> list[Part]:
    """Return the fewest first parts of ``order`` that in i8 keep perplexity within ``limit``: by bisection."""
    own = mean_nll(checkpoint, ids, {}, rounding)

    def increase(count: int) -> float:
        progress(f"measure with {count} of {len(order)} parts in i8", 0, 0)
        formats: dict[str, Format] = {
            name: "i8" if i < count else part.narrow for i, part in enumerate(order) for name in part.modules
        }
        return math.exp(mean_nll(checkpoint, ids, formats, rounding) - own) - 1

    enough = len(order)
    least = increase(enough)
    if not least <= limit:
        raise ProSparseError(
            f"perplexity: {folder}: expected at most {limit:.2%} more, got {least:.2%} with every matrix in i8",
            hint="pass a larger --max-ppl-increase, or --weights bf16",
        )
    too_few = -1
    while enough - too_few > 1:
        count = (enough + too_few) // 2
        if increase(count) <= limit:
            enough = count
        else:
            too_few = count
    return list(order[:enough])


def _other_bytes(checkpoint: Checkpoint, parts: Sequence[Part]) -> int:
    """Return about what an artifact stores besides these matrices: norms, cos/sin caches, the graph."""
    model = checkpoint.model
    inside = {id(model.get_submodule(name).weight) for part in parts for name in part.modules}
    rest = sum(4 * p.numel() for p in model.parameters() if id(p) not in inside)
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    rope = 2 * 4 * (context_in(checkpoint.config) or 0) * head_dim // 2
    bias = 4 * int(config.vocab_size)
    return int(rest + min(rope, _ROPE_BYTES) + bias + _GRAPH_BYTES + _TENSOR_BYTES * len(inside))
