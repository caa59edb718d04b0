"""Require bit-identical logits across runs and thread counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import Window

__all__ = ["Determinism", "check_determinism"]

_TOKENS, _STEPS, _RUNS = 128, 16, 3


@dataclass(frozen=True)
class Determinism:
    """Repeated runs with the library, compared bit for bit.

    Attributes:
        threads: thread count of each run.
        tokens: positions per run.
        differing: logits that differ from the first run's in any bit, over all runs.
        first: the first difference, in words; "" if all runs agree.
    """

    threads: tuple[int, ...]
    tokens: int
    differing: int
    first: str

    @property
    def passed(self) -> bool:
        """Whether all runs agree bit for bit."""
        return self.differing == 0


def check_determinism(
    path: str,
    windows: Sequence[Window],
    *,
    threads: int | None,
    whole: bool,
    open_model: type[SparseModel] = SparseModel,
) -> Determinism:
    """Run the text several times and compare the logits' bits.

    Args:
        path: the artifact.
        windows: windows of the text.
        threads: thread count in use; None for one per core.
        whole: run the whole text, once with one thread and once with several. Otherwise run a few tokens three times
            with ``threads``.
        open_model: class that opens the artifact; a parameter for tests.
    """
    usual = threads or os.cpu_count() or 1
    counts = (1, max(usual, 2)) if whole else (usual,) * _RUNS
    texts = [w.ids for w in windows] if whole else [windows[0].ids[:_TOKENS]]
    models = {count: open_model.open(path, threads=count) for count in set(counts)}
    differing, first, tokens = 0, "", 0
    for number, ids in enumerate(texts):
        expected: NDArray[np.uint32] | None = None
        for run, count in enumerate(counts):
            bits = _logits(models[count], ids).view(np.uint32)
            if expected is None:
                expected = bits
                tokens += len(bits)
                continue
            wrong = bits != expected
            differing += int(wrong.sum())
            if wrong.any() and not first:
                token = int(np.flatnonzero(wrong.any(-1))[0])
                first = f"window {number}, token {token}, run {run + 1} ({count} threads) against run 1 ({counts[0]})"
    return Determinism(counts, tokens, differing, first)


def _logits(model: SparseModel, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits of a prefill of all tokens, then of the last few decoded one at a time."""
    steps = min(_STEPS, len(ids) - 1)
    head, _ = model.forward(ids[None], np.ones((1, len(ids)), np.int64))
    parts = [head[0]]
    cache: Cache | None = None
    begin = len(ids) - steps
    _, cache = model.forward(ids[None, :begin], np.ones((1, begin), np.int64))
    for i in range(begin, len(ids)):
        step, cache = model.forward(ids[None, i : i + 1], np.ones((1, i + 1), np.int64), cache)
        parts.append(step[0])
    return np.ascontiguousarray(np.concatenate(parts))
