"""Round matrices to i4 so that later columns make up for the errors of earlier ones, on the inputs that text gives.

For each linear layer, the rounded matrix R minimizes approximately ``|(W - R) X|`` over the inputs X of a text: columns
are rounded one by one, most important first, and each one's error is spread over those that are still to come, in the
proportions that the inputs' second moments ``H = X X^T`` say. What a short text says about pairs of inputs is mostly
chance, so these moments are shrunk toward those of independent inputs: docs/decisions/quantization.md.

Source:
    E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023,
    arXiv:2210.17323. Scales are chosen beforehand, by the weighted search of graph_passes.weights.group_scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from graph_passes import FORMAT_SPECS, RoundedMatrix, WeightRangeError, dequantize, pack, scales_of
from graph_passes.formats import QUANT_GROUP
from prosparse_export.errors import ProSparseError
from prosparse_export.export.input_moments import relative_importance, token_rows
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.export.substituted_weights import substituted_weights
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.text import Document
from prosparse_models import Checkpoint

__all__ = ["compensated_matrices", "round_compensating"]

_SHRINKAGE = 0.3  # of the moments of pairs; chosen by the outputs' error on other text
_DAMPING = 1e-3  # of the mean second moment, added to all of them, so that unused inputs cause no division by 0
_MOST_STEPS = 3.0  # that other columns' errors may move a weight; `plausible_integers` relies on it
_BLOCK = 128  # columns whose errors are spread over the rest in one MatMul


class _AllRounded(Exception):  # noqa: N818  (no error: the rest of the model need not run)
    """Every matrix has been rounded."""


@torch.no_grad()
def compensated_matrices(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    is_down: Mapping[str, bool],
    progress: ProgressCallback,
) -> dict[str, RoundedMatrix]:
    """Run a model over text, round matrices when a token reaches them, and return those, by module path.

    Every matrix sees the inputs that the rounded ones before it give. Matrices in files are read once.

    Args:
        checkpoint: the model; its own weights are back in place afterwards.
        documents: the text.
        is_down: the matrices to round, by module path; whether each is stored as a sparse operator's down_proj.
        progress: called with each matrix.
    """
    rows = [torch.from_numpy(row) for row in token_rows(documents, checkpoint.config)]
    found: dict[str, RoundedMatrix] = {}
    seen = _SecondMoments()

    def substitute(name: str, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if name not in found:
            progress("round", len(found), len(is_down))
            found[name] = _named(name, matrix, seen.of(x), is_down=is_down[name])
        if len(found) == len(is_down):
            raise _AllRounded
        return _values(found[name], matrix.shape)

    with (
        quiet(),
        suppress(_AllRounded),
        as_stored(checkpoint, {}),
        substituted_weights(checkpoint.model, is_down, substitute),
    ):
        checkpoint.model(input_ids=torch.stack(rows))
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


def _named(name: str, matrix: torch.Tensor, moments: torch.Tensor, *, is_down: bool) -> RoundedMatrix:
    try:
        return round_compensating(matrix, moments, is_down=is_down)
    except WeightRangeError as error:
        raise ProSparseError(f"weights: {name}: {error.detail}", hint=error.hint) from error


def round_compensating(weight: torch.Tensor, moments: torch.Tensor, *, is_down: bool = False) -> RoundedMatrix:
    """Round a matrix to i4, spreading each column's error over the columns after it.

    Args:
        weight: ``[d_out, d_in]``, float32.
        moments: second moments of its inputs, ``[d_in, d_in]``.
        is_down: groups of 32 share a scale along d_out instead of d_in, as in a sparse operator's down_proj.

    Raises:
        WeightRangeError: a weight is not finite, or its scale is too large for float16.
    """
    d_out, d_in = weight.shape
    diagonal = moments.diagonal()
    if is_down:
        scales = scales_of(weight.T.contiguous().numpy(), "i4")
        by_input = _each(scales)[:, :d_out]
    else:
        importance = relative_importance(diagonal)
        scales = scales_of(weight.numpy(), "i4", importance)
        by_input = np.ascontiguousarray(_each(scales)[:, :d_in].T)
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = _inverse_factor(moments[order][:, order])
    levels = _round_columns(weight.T[order].contiguous(), torch.from_numpy(by_input)[order], factor)
    integers = torch.empty_like(levels)
    integers[order] = levels
    rows = integers if is_down else integers.T
    padded = np.zeros((len(rows), scales.shape[1] * QUANT_GROUP), np.int8)
    padded[:, : rows.shape[1]] = rows.numpy()
    return RoundedMatrix(pack(padded), scales, is_down)


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with ``U^T U`` the inverse of the shrunk moments."""
    diagonal = moments.diagonal()
    shrunk = moments * (1 - _SHRINKAGE)
    shrunk.diagonal().copy_(diagonal + _DAMPING * (float(diagonal.mean()) or 1.0))
    # With rows and columns reversed, moments = L L^T gives moments = R R^T, R upper: U is the inverse of R.
    lower = torch.linalg.cholesky(shrunk.flip(0, 1))
    factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(moments)), upper=True)
    return factor


def _round_columns(columns: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the integers of a matrix's columns, int8 ``[d_in, d_out]``.

    Args:
        columns: the matrix transposed, ``[d_in, d_out]``; changed.
        scales: of each weight, likewise.
        factor: from `_inverse_factor`.
    """
    low, high = FORMAT_SPECS["i4"].levels or (0, 0)
    divisors = torch.where(scales == 0, torch.inf, scales)
    reach = _MOST_STEPS * scales.abs()
    least, most = columns - reach, columns + reach
    integers = torch.empty(columns.shape, dtype=torch.int8)
    errors = torch.empty(_BLOCK, columns.shape[1])
    for first in range(0, len(columns), _BLOCK):
        last = min(first + _BLOCK, len(columns))
        for j in range(first, last):
            moved = torch.clamp(columns[j], least[j], most[j])
            rounded = (moved / divisors[j]).round_().clamp_(low, high)
            integers[j] = rounded.to(torch.int8)
            errors[j - first] = (columns[j] - rounded * scales[j]) / factor[j, j]
            columns[j + 1 : last].addr_(factor[j, j + 1 : last], errors[j - first], alpha=-1)
        columns[last:].addmm_(factor[first:last, last:].T, errors[: last - first], alpha=-1)
    return integers


def _each(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return a scale for each weight of a row."""
    return np.repeat(scales.astype(np.float32), QUANT_GROUP, axis=1)


def _values(rounded: RoundedMatrix, shape: torch.Size) -> torch.Tensor:
    """Return the float32 matrix ``[d_out, d_in]`` that is stored."""
    values = torch.from_numpy(dequantize(rounded.integers, rounded.scales, shape[0 if rounded.is_down else 1]))
    return values.T.contiguous() if rounded.is_down else values
