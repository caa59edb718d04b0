"""Time the Python side of decode: the time per token outside onnxruntime's call.

The loop of `SparseModel.stream` runs with a clock around the session's call. What remains is the choice of a token from
the logits, the arrays for position and mask, and Python itself. For comparison, a loop over `SparseModel.forward`
allocates all inputs and outputs anew for each token; the two alternate.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prosparse_export.bench.options import BenchOptions
from prosparse_export.bench.result import LoopTime, Spread
from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.model import SparseModel

__all__ = ["time_loop"]


class _TimedSession:
    """A session that adds up the time of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, io: Any) -> None:
        began = time.perf_counter()
        self._session.run_with_iobinding(io)
        self.seconds += time.perf_counter() - began


def time_loop(
    model: SparseModel, ids: NDArray[np.int64], options: BenchOptions, progress: ProgressCallback
) -> LoopTime:
    """Decode greedily after the prompt ``ids[:context]``, in both kinds of loop."""
    prompt, tokens = ids[: options.context], options.tokens
    rounds = options.fewer_rounds + 1
    times = []
    for number in range(rounds):
        progress("decode loop", number, rounds)
        times.append((*_bound(model, prompt, tokens), _unbound(model, prompt, tokens)))
    counted = times[1:]
    return LoopTime(
        microseconds=Spread.of([1e6 * whole for whole, _, _ in counted]),
        outside_microseconds=Spread.of([1e6 * outside for _, outside, _ in counted]),
        outside_share=Spread.of([outside / whole for whole, outside, _ in counted]),
        unbound_ratio=Spread.of([unbound / whole for whole, _, unbound in counted]),
    )


def _bound(model: SparseModel, prompt: NDArray[np.int64], tokens: int) -> tuple[float, float]:
    """Return the seconds per token of `SparseModel.stream`, and those of them outside onnxruntime's call."""
    timed = _TimedSession(model.session)
    stream = replace(model, session=timed, stop=frozenset()).stream([prompt.tolist()], max_new_tokens=tokens + 1)
    next(stream)  # prefill
    timed.seconds = 0.0
    began = time.perf_counter()
    for _ in stream:
        pass
    whole = time.perf_counter() - began
    return whole / tokens, (whole - timed.seconds) / tokens


def _unbound(model: SparseModel, prompt: NDArray[np.int64], tokens: int) -> float:
    """Return the seconds per token of a loop over `SparseModel.forward`."""
    mask = np.ones((1, len(prompt)), np.int64)
    cache: Cache | None = None
    logits, cache = model.forward(prompt[None], mask, cache)
    began = time.perf_counter()
    for _ in range(tokens):
        mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
        logits, cache = model.forward(logits[:, -1].argmax(-1)[:, None], mask, cache)
    return (time.perf_counter() - began) / tokens
