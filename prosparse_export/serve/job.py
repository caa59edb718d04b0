"""One text to generate: what was asked for, and what a client is told while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.detokenizer import Detokenizer
from prosparse_export.runtime.sampling import Sampler
from prosparse_export.serve.grammar import Matcher

__all__ = ["Done", "Event", "Failed", "FinishReason", "Job", "Piece", "TokenLogprobs"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities before temperature, top_k and top_p.

    Attributes:
        token: the chosen token's id and its log probability.
        top: the most probable tokens, best first.
    """

    token: tuple[int, float]
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that is now certain, perhaps empty, and the token that was chosen (None for an end token)."""

    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Done:
    """The text has ended.

    Attributes:
        reason: "stop" for an end token, a stop string, or the end of the grammar; "length" for the limit of tokens.
        completion_tokens: tokens generated, the end token included.
        cached_tokens: tokens of the prompt that were copied from the prefix cache.
    """

    reason: FinishReason
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Failed:
    """The text was given up.

    Attributes:
        error: why.
        status: of HTTP.
    """

    error: ProSparseError
    status: int = 500


Event: TypeAlias = Piece | Done | Failed


@dataclass(eq=False)
class Job:
    """A text to generate.

    Attributes:
        ids: the prompt's tokens.
        max_tokens: maximum number of new tokens.
        sampler: chooses tokens for a batch of one.
        text: turns tokens into text; it knows the stop strings.
        emit: receives events, in the scheduler's thread.
        top_logprobs: how many most probable tokens to tell per token; None for no log probabilities.
        grammar: restricts the tokens, or None.
        deadline: time by `time.monotonic` at which the job is given up.
        cancelled: nobody waits for the text anymore; any thread may set it.
        tokens: new tokens so far.
        cached: tokens of the prompt that came from the prefix cache.
        arrived: time of submission by `time.monotonic`.
    """

    ids: Sequence[int]
    max_tokens: int
    sampler: Sampler
    text: Detokenizer
    emit: Callable[[Event], None]
    top_logprobs: int | None = None
    grammar: Matcher | None = None
    deadline: float = math.inf
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    arrived: float = field(default_factory=time.monotonic)

    def choose(self, logits: NDArray[np.float32], stop: frozenset[int]) -> bool:
        """Choose the next token from ``logits``, ``[vocabulary]``, tell the client, and return whether the text ended.

        Args:
            logits: of the model; they are not changed.
            stop: tokens that end a text.

        Raises:
            NotFiniteError: the largest logit is NaN or infinite.
        """
        allowed = logits if self.grammar is None else self.grammar.masked(logits)
        token = int(self.sampler.choose(allowed[None])[0])
        self.tokens.append(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        if token in stop:
            return self._end("stop", self.text.end())
        piece = self.text.add(token)
        logprobs = None if self.top_logprobs is None else _logprobs(logits, token, self.top_logprobs)
        if self.text.ended:
            return self._end("stop", piece, logprobs)
        if self.grammar is not None and self.grammar.complete:
            return self._end("stop", piece + self.text.end(), logprobs)
        if len(self.tokens) >= self.max_tokens:
            return self._end("length", piece + self.text.end(), logprobs)
        self.emit(Piece(piece, logprobs))
        return False

    def _end(self, reason: FinishReason, piece: str, logprobs: TokenLogprobs | None = None) -> bool:
        if piece or logprobs is not None:
            self.emit(Piece(piece, logprobs))
        self.emit(Done(reason, len(self.tokens), self.cached))
        return True


def _logprobs(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    values = logits.astype(np.float64)
    values -= values.max()
    values -= math.log(np.exp(values).sum())
    best = np.argpartition(-values, count)[:count] if 0 < count < len(values) else np.arange(min(count, len(values)))
    best = best[np.argsort(-values[best], kind="stable")]
    return TokenLogprobs((token, float(values[token])), tuple((int(i), float(values[i])) for i in best))
