"""Time decode and prefill, the sparse run and the dense baseline alternating round by round."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from prosparse_export.bench.options import WARMUP, BenchOptions
from prosparse_export.bench.result import Spread, Timing
from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.decode_loop import Decoder
from prosparse_export.runtime.model import SparseModel

__all__ = ["time_workloads"]


def time_workloads(
    models: list[SparseModel], ids: NDArray[np.int64], options: BenchOptions, progress: ProgressCallback
) -> list[Timing]:
    """Time decode, then each prompt length.

    Args:
        models: the sparse model and, if there is one, the dense baseline.
        ids: the text that all of them are fed, ``[tokens]``.
        options: workloads and rounds.
        progress: progress.
    """
    timings = [_decode(models, ids, options, progress)]
    timings += [_prefill(models, ids, length, options, progress) for length in options.prefill]
    return timings


def _decode(
    models: list[SparseModel], ids: NDArray[np.int64], options: BenchOptions, progress: ProgressCallback
) -> Timing:
    rounds = options.rounds + WARMUP
    total = options.context + options.tokens * rounds
    decoders = [_prefilled(model, ids[: options.context], total) for model in models]
    times: list[list[float]] = []
    for number in range(rounds):
        progress("decode", number, rounds)
        begin = options.context + number * options.tokens
        times.append([_step_through(decoder, ids[begin : begin + options.tokens]) for decoder in decoders])
    return _timing("decode", options.context, times[WARMUP:], options.tokens, 1 / options.tokens)


def _prefill(
    models: list[SparseModel], ids: NDArray[np.int64], length: int, options: BenchOptions, progress: ProgressCallback
) -> Timing:
    rounds = options.fewer_rounds + 1
    times: list[list[float]] = []
    for number in range(rounds):
        progress(f"prefill of {length}", number, rounds)
        times.append([])
        for model in models:
            began = time.perf_counter()
            _prefilled(model, ids[:length], length)
            times[-1].append(time.perf_counter() - began)
    return _timing("prefill", length, times[1:], length, 1.0)


def _prefilled(model: SparseModel, ids: NDArray[np.int64], capacity: int) -> Decoder:
    decoder = model.decoder(1, capacity)
    decoder.prefill(ids[None], np.ones((1, len(ids)), np.int64))
    return decoder


def _step_through(decoder: Decoder, ids: NDArray[np.int64]) -> float:
    """Return the seconds that the tokens ``ids`` take, one at a time, with an argmax over the logits of each."""
    began = time.perf_counter()
    for token in ids:
        decoder.step(token).argmax()
    return time.perf_counter() - began


def _timing(name: str, tokens: int, times: list[list[float]], count: int, scale: float) -> Timing:
    """Summarize rounds of [sparse, dense] seconds for ``count`` tokens; ``scale`` converts them to `Timing.seconds`."""
    columns = list(zip(*times, strict=True))
    rates = [Spread.of([count / t for t in column]) for column in columns]
    ratio = Spread.of([dense / sparse for sparse, dense in times]) if len(columns) > 1 else None
    return Timing(name, tokens, rates[0], rates[1] if ratio else None, ratio, float(np.median(columns[0])) * scale)
