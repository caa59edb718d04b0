"""Choose the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError

__all__ = ["GREEDY", "NotFiniteError", "Sampler", "Sampling"]


class NotFiniteError(ProSparseError):
    """The largest logit is NaN or infinite."""


_NEGLIGIBLE = 53 * math.log(2)  # logits: a token so far below the top-1 has less than 2^-53 of its probability


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: temperature first, then top_k, then top_p of what remains.

    Attributes:
        temperature: 0 for greedy decoding; above 0, probabilities are softmax(logits / temperature).
        top_k: sample from the top k tokens; 0 for all.
        top_p: sample from the smallest set of top tokens with at least this fraction of the probability (nucleus
            sampling, arXiv:1904.09751).
        seed: makes the tokens reproducible; None for different ones each time.

    Raises:
        ProSparseError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, right, range_, hint in (
            (
                "temperature",
                self.temperature,
                0.0 <= self.temperature < math.inf,
                "a number >= 0",
                "0 is greedy decoding",
            ),
            ("top_k", self.top_k, self.top_k >= 0, "an integer >= 0", "0 is all tokens"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "a number > 0 and <= 1", "1 is all tokens"),
        ):
            if not right:
                raise ProSparseError(f"{name}: expected {range_}, got {value}", hint=hint)


GREEDY = Sampling()


class Sampler:
    """Chooses tokens for a batch; each row has its own random generator, so a text does not depend on other rows.

    Args:
        sampling: how tokens are chosen.
        batch: number of rows.
        first: number of the first row, if the rows are part of a larger batch.
    """

    def __init__(self, sampling: Sampling, batch: int, first: int = 0) -> None:
        self._sampling = sampling
        entropy = np.random.SeedSequence(sampling.seed).entropy
        self._generators = [
            np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(row,)))  # as `spawn` makes them
            for row in range(first, first + batch)
        ]

    def choose(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return a token for each row of ``logits``, ``[batch, vocabulary]``.

        Raises:
            NotFiniteError: the largest logit is not finite.
        """
        best: NDArray[np.int64] = logits.argmax(-1)
        top = [float(row[token]) for row, token in zip(logits, best.tolist(), strict=True)]
        if not all(map(math.isfinite, top)):  # argmax prefers NaN
            raise NotFiniteError(
                "logits: expected finite numbers, got NaN or infinity", hint="check the model with prosparse validate"
            )
        if self._sampling.temperature == 0.0:
            return best
        return np.array([self._draw(*row) for row in zip(logits, top, self._generators, strict=True)], np.int64)

    def _draw(self, logits: NDArray[np.float32], top: float, generator: np.random.Generator) -> int:
        options = self._sampling
        with np.errstate(over="ignore"):  # at temperatures near 0 all other tokens are at -infinity
            exponents = (logits - np.float32(top)).astype(np.float64) / options.temperature
        tokens = np.flatnonzero(exponents > -_NEGLIGIBLE)
        if 0 < options.top_k < len(tokens):
            tokens = tokens[np.argsort(-exponents[tokens], kind="stable")[: options.top_k]]
        weights = np.exp(exponents[tokens])
        if options.top_p < 1.0:
            order = np.argsort(-weights, kind="stable")
            tokens, weights = tokens[order], weights[order]
            sums = weights.cumsum()
            count = int(np.searchsorted(sums, options.top_p * sums[-1])) + 1
            tokens, weights = tokens[:count], weights[:count]
        sums = weights.cumsum()
        return int(tokens[min(int(np.searchsorted(sums, generator.random() * sums[-1], "right")), len(tokens) - 1)])
