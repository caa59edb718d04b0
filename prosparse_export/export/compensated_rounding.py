"""Round matrices to 4 bits so that later columns make up for the errors of earlier ones, on the inputs that text gives.

For each linear layer, the rounded matrix R minimizes approximately ``|(W - R) X|`` over the inputs X of a text: columns
are rounded one by one, most important first, and each one's error is spread over those that are still to come, in the
proportions that the inputs' second moments ``H = X X^T`` say. Then the scales are fitted to the integers by least
squares, the columns rounded again, and each column's integers chosen once more given all others. What a short text says
about pairs of inputs is mostly chance, so these moments are shrunk toward those of independent inputs:
docs/decisions/quantization.md.

Source:
    E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023,
    arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from graph_passes import (
    Format,
    RoundedMatrix,
    WeightRangeError,
    dequantize,
    divided,
    output_powers,
    pack,
    plausible_groups,
    scales_of,
)
from graph_passes.formats import QUANT_GROUP
from prosparse_export.errors import ProSparseError
from prosparse_export.export.column_rounding import fit_scales, improve_integers, inverse_factor, round_columns
from prosparse_export.export.input_moments import relative_importance, token_rows
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.export.substituted_weights import substituted_weights
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_export.text import Document
from prosparse_models import Checkpoint

__all__ = ["NarrowMatrix", "compensated_matrices", "round_compensating"]

_SHRINKAGE = 0.3  # of the moments of pairs; chosen by the outputs' error on other text
_DAMPING = 1e-3  # of the mean second moment, added to all of them, so that unused inputs cause no division by 0


class NarrowMatrix(NamedTuple):
    """A matrix in 4 bits.

    Attributes:
        weights: i4 or nl4.
        is_down: it is stored as a sparse operator's down_proj.
    """

    weights: Format
    is_down: bool


class _AllRounded(Exception):  # noqa: N818  (no error: the rest of the model need not run)
    """Every matrix has been rounded."""


@torch.no_grad()
def compensated_matrices(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    matrices: Mapping[str, NarrowMatrix],
    progress: ProgressCallback,
) -> dict[str, RoundedMatrix]:
    """Run a model over text, round matrices when a token reaches them, and return those, by module path.

    Every matrix sees the inputs that the rounded ones before it give. Matrices in files are read once.

    Args:
        checkpoint: the model; its own weights are back in place afterwards.
        documents: the text.
        matrices: those to round, by module path.
        progress: called with each matrix.
    """
    rows = [torch.from_numpy(row) for row in token_rows(documents, checkpoint.config)]
    found: dict[str, RoundedMatrix] = {}
    seen = _SecondMoments()

    def substitute(name: str, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if name not in found:
            progress("round", len(found), len(matrices))
            found[name] = _named(name, matrix, seen.of(x), matrices[name])
        if len(found) == len(matrices):
            raise _AllRounded
        return _values(found[name], matrix.shape)

    with (
        quiet(),
        suppress(_AllRounded),
        as_stored(checkpoint, {}),
        substituted_weights(checkpoint.model, matrices, substitute),
    ):
        checkpoint.model(input_ids=torch.stack(rows), use_cache=False)
    return found


class _SecondMoments:
    """``X X^T`` of the last input; projections that share an input follow each other."""

    def __init__(self) -> None:
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[d_in, d_in]`` of inputs ``[..., d_in]``."""
        if self._last is None or self._last[0] is not x:
            self._last = None  # freed before the next is made
            rows = x.detach().float().reshape(-1, x.shape[-1])
            self._last = (x, rows.T @ rows)
        return self._last[1]


def _named(name: str, matrix: torch.Tensor, moments: torch.Tensor, wanted: NarrowMatrix) -> RoundedMatrix:
    try:
        return round_compensating(matrix, moments, wanted.weights, is_down=wanted.is_down)
    except WeightRangeError as error:
        raise ProSparseError(f"weights: {name}: {error.detail}", hint=error.hint) from error


def round_compensating(
    weight: torch.Tensor, moments: torch.Tensor, weights: Format, *, is_down: bool = False
) -> RoundedMatrix:
    """Round a matrix to 4 bits, spreading each column's error over the columns after it.

    Args:
        weight: ``[d_out, d_in]``, float32.
        moments: second moments of its inputs, ``[d_in, d_in]``; if they are not finite, inputs count as independent.
        weights: i4 or nl4.
        is_down: groups of 32 share a scale along d_out instead of d_in, as in a sparse operator's down_proj.

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    if not moments.diagonal().isfinite().all():
        moments = torch.eye(len(moments))
    powers = output_powers(weight.T.numpy()) if is_down else None
    if powers is not None:
        weight = torch.from_numpy(divided(weight.numpy(), powers[:, None]))
    diagonal = moments.diagonal()
    shrunk = moments * (1 - _SHRINKAGE)
    shrunk.diagonal().copy_(diagonal + _DAMPING * (float(diagonal.mean()) or 1.0))
    order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = shrunk[order][:, order]
    factor = inverse_factor(ordered)
    back = torch.argsort(order)
    columns = weight.T[order].contiguous()
    if is_down:
        scales = scales_of(weight.T.contiguous().numpy(), weights, rounding=library_rounding())
    else:
        left_over = factor.diagonal() ** -2  # what an error costs after the columns to come have made up for it
        scales = scales_of(weight.numpy(), weights, relative_importance(left_over[back]), library_rounding())
        found = round_columns(columns, _by_input(scales, weight, is_down=False)[order], factor, weights)
        scales = _fitted(weight, found[back].T, scales, shrunk, weights)
    each = _by_input(scales, weight, is_down=is_down)[order]
    found = round_columns(columns, each, factor, weights)
    found = improve_integers(columns, found, each, ordered, weights)
    integers = found[back] if is_down else found[back].T
    padded = np.zeros((len(integers), scales.shape[1] * QUANT_GROUP), np.int8)
    padded[:, : integers.shape[1]] = integers.numpy()
    return RoundedMatrix(pack(padded, weights), scales, weights, is_down, powers)


def _fitted(
    weight: torch.Tensor, integers: torch.Tensor, scales: NDArray[np.float16], moments: torch.Tensor, weights: Format
) -> NDArray[np.float16]:
    """Return scales that fit ``integers`` better; those that a search might not have chosen stay."""
    wanted = fit_scales(weight, integers, torch.from_numpy(scales.astype(np.float32)), moments)
    with np.errstate(over="ignore"):
        fitted = wanted.numpy().astype(np.float16)
    usable = np.isfinite(fitted) & (np.sign(fitted) == np.sign(scales))
    usable &= plausible_groups(weight.numpy(), weights, np.where(usable, fitted, scales))
    return np.where(usable, fitted, scales)


def _by_input(scales: NDArray[np.float16], weight: torch.Tensor, *, is_down: bool) -> torch.Tensor:
    """Return the scale of each weight, ``[d_in, d_out]``."""
    d_out, d_in = weight.shape
    each = torch.from_numpy(np.repeat(scales.astype(np.float32), QUANT_GROUP, axis=1))
    return each[:, :d_out] if is_down else each[:, :d_in].T.contiguous()


def _values(rounded: RoundedMatrix, shape: torch.Size) -> torch.Tensor:
    """Return the float32 matrix ``[d_out, d_in]`` that is stored."""
    columns = shape[0 if rounded.is_down else 1]
    values = torch.from_numpy(dequantize(rounded.integers, rounded.scales, columns, rounded.weights))
    if rounded.powers is not None:
        values *= torch.from_numpy(rounded.powers)
    return values.T.contiguous() if rounded.is_down else values
