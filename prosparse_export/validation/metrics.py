"""Compare logits with a reference's, token by token, in one pass and little memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Quality", "QualitySum"]

_ROWS = 64  # tokens at a time: a vocabulary of 128,000 in float64 takes 64 MiB


@dataclass(frozen=True)
class Quality:
    """One run against the reference on the same tokens.

    Attributes:
        name: the run.
        tokens: positions compared.
        perplexity: exp of the mean negative log-likelihood of the next token.
        reference_perplexity: the reference's.
        kl_mean: mean over positions of KL(reference || run), nats.
        kl_max: maximum over positions.
        top1: fraction of positions with the reference's top-1 token.
        top5: fraction of positions whose top-1 token is among the reference's top 5.
        max_abs_diff: largest difference of a logit; NaN if a logit is NaN.
    """

    name: str
    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_max: float
    top1: float
    top5: float
    max_abs_diff: float

    @property
    def perplexity_increase(self) -> float:
        """Relative change of perplexity: 0.01 is 1% worse than the reference."""
        return self.perplexity / self.reference_perplexity - 1


@dataclass
class Difference:
    """Differences of logits, and positions whose top-1 token differs.

    Attributes:
        tokens: positions compared.
        max_abs_diff: largest difference; NaN if a logit was NaN.
        differs: positions whose top-1 token differs, ties excluded.
        ties: positions whose top-1 token differs while the two largest expected logits are within twice the bound.
        first: first position beyond the bound or with another top-1 token; -1 if all are within.
    """

    tokens: int = 0
    max_abs_diff: float = 0.0
    differs: int = 0
    ties: int = 0
    first: int = -1

    def add(self, actual: NDArray[np.float32], expected: NDArray[np.float32], bound: float) -> None:
        """Add positions, both ``[tokens, vocabulary]``. A NaN counts as a difference and stays in ``max_abs_diff``."""
        for first in range(0, len(expected), _ROWS):
            a, e = actual[first : first + _ROWS], expected[first : first + _ROWS]
            largest = np.abs(a - e).max(-1)
            self.max_abs_diff = float(np.maximum(self.max_abs_diff, largest.max()))  # maximum keeps a NaN
            best_two = np.sort(np.partition(e, -2, axis=-1)[:, -2:], axis=-1)
            tied = best_two[:, 1] - best_two[:, 0] <= 2 * bound
            other = a.argmax(-1) != e.argmax(-1)
            wrong = (other & ~tied) | ~(largest <= bound)
            if wrong.any() and self.first < 0:
                self.first = self.tokens + int(wrong.argmax())
            self.differs += int((other & ~tied).sum())
            self.ties += int((other & tied).sum())
            self.tokens += len(e)


@dataclass
class QualitySum:
    """Sums for `Quality`, in float64."""

    name: str
    _tokens: int = 0
    _predicted: int = 0
    _nll: float = 0.0
    _reference_nll: float = 0.0
    _kl: float = 0.0
    _kl_max: float = 0.0
    _top1: int = 0
    _top5: int = 0
    _difference: float = field(default=0.0)

    def add(self, actual: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        """Add positions.

        Args:
            actual: logits, ``[tokens, vocabulary]``.
            expected: the reference's logits, likewise.
            targets: the next token, ``[tokens]``; -1 where the text ends.
        """
        for first in range(0, len(expected), _ROWS):
            part = slice(first, first + _ROWS)
            self._add(actual[part], expected[part], targets[part])

    def _add(self, actual: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        p, q = _log_softmax(expected), _log_softmax(actual)
        kl = (np.exp(p) * (p - q)).sum(-1)
        self._tokens += len(kl)
        self._kl += float(kl.sum())
        self._kl_max = float(np.maximum(self._kl_max, kl.max()))
        best = actual.argmax(-1)
        nan = np.isnan(actual).any(-1)  # argmax returns the NaN's index
        self._top1 += int(((best == expected.argmax(-1)) & ~nan).sum())
        k = min(5, expected.shape[-1])
        top5 = np.argpartition(expected, -k, axis=-1)[:, -k:]
        self._top5 += int(((top5 == best[:, None]).any(-1) & ~nan).sum())
        self._difference = float(np.maximum(self._difference, np.abs(actual - expected).max()))
        rows = np.flatnonzero(targets >= 0)
        self._predicted += len(rows)
        self._nll -= float(q[rows, targets[rows]].sum())
        self._reference_nll -= float(p[rows, targets[rows]].sum())

    def result(self) -> Quality:
        """Return the metrics over all positions added."""
        return Quality(
            self.name,
            self._tokens,
            _perplexity(self._nll, self._predicted),
            _perplexity(self._reference_nll, self._predicted),
            max(self._kl / self._tokens, 0.0) if not math.isnan(self._kl) else math.nan,
            self._kl_max,
            self._top1 / self._tokens,
            self._top5 / self._tokens,
            self._difference,
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity becomes NaN, which fails every limit
        shifted -= shifted.max(-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def _perplexity(nll: float, tokens: int) -> float:
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf
