"""Integers and scales that together minimize the error of a matrix's outputs, given its inputs' second moments.

They approximately minimize ``trace((W - R) H (W - R)^T)`` over the stored matrix R, with H the moments. Unless stated
otherwise, matrices are transposed, ``[d_in, d_out]``: a column is a row here.
"""

from __future__ import annotations

import torch

from graph_passes import FORMAT_SPECS, Format
from graph_passes.formats import QUANT_GROUP, FormatSpec

__all__ = ["fit_scales", "improve_integers", "inverse_factor", "round_columns"]

_MOST_STEPS = 3.0  # that other columns' errors may move a weight
_MOST_PLACES = 4  # from the nearest integer, as `plausible_integers` allows
_BLOCK = 128  # columns whose errors are spread over the rest in one MatMul
_RIDGE = 1e-3  # of a scale's mean curvature: keeps scales that the moments say nothing about
_SYSTEMS = 1 << 25  # numbers in the systems of equations that are solved at once


def inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with ``U^T U`` the inverse of ``moments``."""
    # With rows and columns reversed, moments = L L^T gives moments = R R^T, R upper: U is the inverse of R.
    lower = torch.linalg.cholesky(moments.flip(0, 1))
    factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(moments)), upper=True)
    return factor


class _Integers:
    """The integers of a 4-bit format, near those that are nearest to given weights.

    Args:
        spec: the format.
        columns: the weights, ``[d_in, d_out]``.
        divisors: the scale of each, infinite instead of 0.
    """

    def __init__(self, spec: FormatSpec, columns: torch.Tensor, divisors: torch.Tensor) -> None:
        low, high = spec.levels or (0, 0)
        table = torch.arange(low, high + 1) if spec.table is None else torch.tensor(spec.table)
        self._table = table.float()
        self._middles = None if spec.table is None else (self._table[1:] + self._table[:-1]) / 2
        self._low, self._high = float(low), float(high)
        place = torch.searchsorted(self._table, self._nearest((columns / divisors).contiguous()))
        last = len(table) - 1
        self._least = self._table[(place - _MOST_PLACES).clamp_(0, last)]
        self._most = self._table[(place + _MOST_PLACES).clamp_(0, last)]

    def _nearest(self, quotients: torch.Tensor) -> torch.Tensor:
        if self._middles is None:
            return quotients.round().clamp_(self._low, self._high)
        return self._table[torch.bucketize(quotients, self._middles)]

    def of(self, j: int, quotients: torch.Tensor) -> torch.Tensor:
        """Return the integers of column ``j`` for weights over scales."""
        return torch.clamp(self._nearest(quotients), self._least[j], self._most[j])


def round_columns(columns: torch.Tensor, scales: torch.Tensor, factor: torch.Tensor, weights: Format) -> torch.Tensor:
    """Round columns in order, spreading each one's error over those after it; return float32 integers.

    Args:
        columns: the matrix transposed, ``[d_in, d_out]``.
        scales: of each weight, likewise.
        factor: from `inverse_factor`.
        weights: the format.
    """
    spec = FORMAT_SPECS[weights]
    divisors = _divisors(scales)
    allowed = _Integers(spec, columns, divisors)
    reach = _MOST_STEPS * spec.step * scales.abs()
    least, most = columns - reach, columns + reach
    left = columns.clone()
    integers = torch.empty_like(columns)
    errors = torch.empty(_BLOCK, columns.shape[1])
    for first in range(0, len(left), _BLOCK):
        last = min(first + _BLOCK, len(left))
        for j in range(first, last):
            moved = torch.clamp(left[j], least[j], most[j])
            integers[j] = allowed.of(j, moved / divisors[j])
            errors[j - first] = (left[j] - integers[j] * scales[j]) / factor[j, j]
            left[j + 1 : last].addr_(factor[j, j + 1 : last], errors[j - first], alpha=-1)
        left[last:].addmm_(factor[first:last, last:].T, errors[: last - first], alpha=-1)
    return integers


def improve_integers(
    columns: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor, weights: Format
) -> torch.Tensor:
    """Choose each column's integers once more, in order, given those of all others; return the new ones.

    Args:
        columns: the matrix transposed, ``[d_in, d_out]``.
        integers: likewise.
        scales: of each weight, likewise.
        moments: ``[d_in, d_in]``.
        weights: the format.
    """
    divisors = _divisors(scales)
    allowed = _Integers(FORMAT_SPECS[weights], columns, divisors)
    slope = moments @ (columns - integers * scales)
    changes = torch.empty(_BLOCK, columns.shape[1])
    found = integers.clone()
    for first in range(0, len(columns), _BLOCK):
        last = min(first + _BLOCK, len(columns))
        for j in range(first, last):
            wanted = allowed.of(j, found[j] + slope[j] / moments[j, j] / divisors[j])
            changes[j - first] = (wanted - found[j]) * scales[j]
            found[j] = wanted
            slope[j + 1 : last].addr_(moments[j, j + 1 : last], changes[j - first], alpha=-1)
        slope[last:].addmm_(moments[first:last, last:].T, changes[: last - first], alpha=-1)
    return found


def fit_scales(
    weight: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """Return the scales that minimize the outputs' error for given integers, by least squares.

    Args:
        weight: ``[d_out, d_in]``; not transposed here.
        integers: likewise.
        scales: the present ones, ``[d_out, groups]``; a group is 32 columns.
        moments: ``[d_in, d_in]``.
    """
    d_out, d_in = weight.shape
    groups = scales.shape[1]
    missing = groups * QUANT_GROUP - d_in
    padded = torch.nn.functional.pad(integers, (0, missing))
    curvature = torch.nn.functional.pad(moments, (0, missing, 0, missing))
    goal = torch.nn.functional.pad(weight @ moments, (0, missing))
    found = torch.empty_like(scales)
    at_once = max(1, _SYSTEMS // groups**2)
    for first in range(0, d_out, at_once):
        q = padded[first : first + at_once]
        right = (goal[first : first + at_once] * q).reshape(len(q), groups, QUANT_GROUP).sum(2)
        left = torch.empty(len(q), groups, groups)
        for g in range(groups):
            part = slice(QUANT_GROUP * g, QUANT_GROUP * (g + 1))
            left[:, g] = ((q[:, part] @ curvature[part]) * q).reshape(len(q), groups, QUANT_GROUP).sum(2)
        diagonal = left.diagonal(dim1=1, dim2=2)
        ridge = _RIDGE * diagonal.mean(1, keepdim=True)
        ridge[ridge == 0] = 1  # all integers are 0
        diagonal += ridge
        right += ridge * scales[first : first + at_once]
        found[first : first + at_once] = torch.linalg.solve(left, right)
    return found


def _divisors(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, torch.inf, scales)
