"""What to ask of a server, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["LoadOptions", "LoadResult", "Point", "Quantiles", "Request", "summarize"]


@dataclass(frozen=True)
class LoadOptions:
    """A load.

    Attributes:
        clients: numbers of clients in closed loops: each sends its next request when the previous one completes.
        rates: requests per second in open loops: Poisson arrivals, whatever the server does.
        requests: requests per number of clients or rate, at least one per client.
        prompt: median length of a prompt in tokens.
        answer: median number of new tokens.
        spread: standard deviation of the logarithm of both lengths; 0 for fixed lengths.
        seed: of lengths, prompts and arrivals.
        api_key: of the server, or None.
    """

    clients: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...] = ()
    requests: int = 32
    prompt: int = 128
    answer: int = 64
    spread: float = 0.5
    seed: int = 0
    api_key: str | None = None


@dataclass(frozen=True)
class Request:
    """One answered request; times in seconds.

    Attributes:
        began: when it was sent, by the clock of the run.
        first: from sending it to the first text.
        gaps: between pieces of text.
        ended: when the answer was complete.
        prompt_tokens: tokens of the prompt.
        tokens: new tokens.
    """

    began: float
    first: float
    gaps: tuple[float, ...]
    ended: float
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Quantiles:
    """Seconds that half, 95% and 99% of the values do not exceed."""

    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Sequence[float]) -> Quantiles:
        """Summarize ``values``; without any, NaN."""
        found = np.quantile(np.asarray(values, np.float64), [0.5, 0.95, 0.99]) if len(values) else [np.nan] * 3
        return Quantiles(*map(float, found))


@dataclass(frozen=True)
class Point:
    """A number of clients, or a rate.

    Attributes:
        load: "clients" or "requests/s".
        value: how many.
        requests: answered requests.
        refused: requests that the server refused (429, 503).
        tokens_per_second: new tokens of all clients.
        prompt_tokens: mean length of a prompt.
        first_token: time to first token (TTFT).
        between_tokens: inter-token latency (ITL).
        first_seconds: every TTFT.
    """

    load: str
    value: float
    requests: int
    refused: int
    tokens_per_second: float
    prompt_tokens: float
    first_token: Quantiles
    between_tokens: Quantiles
    first_seconds: tuple[float, ...]


@dataclass(frozen=True)
class LoadResult:
    """All measurements of a server.

    Attributes:
        url: of the server.
        model: its model's name.
        points: in the order of measuring.
    """

    url: str
    model: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def summarize(load: str, value: float, answered: Sequence[Request], refused: int) -> Point:
    """Return the measurements of one load."""
    seconds = max((r.ended for r in answered), default=0.0) - min((r.began for r in answered), default=0.0)
    tokens = sum(request.tokens for request in answered)
    return Point(
        load=load,
        value=value,
        requests=len(answered),
        refused=refused,
        tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        prompt_tokens=float(np.mean([request.prompt_tokens for request in answered])) if answered else 0.0,
        first_token=Quantiles.of([request.first for request in answered]),
        between_tokens=Quantiles.of([gap for request in answered for gap in request.gaps]),
        first_seconds=tuple(request.first for request in answered),
    )
