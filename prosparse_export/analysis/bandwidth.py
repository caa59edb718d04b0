"""How fast this machine reads memory, with so many threads: what a decode step can reach at best."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["measure_bandwidth"]

_BYTES = 256 << 20  # beyond any cache
_ROUNDS = 5


def measure_bandwidth(threads: int) -> float:
    """Return bytes per second of a streaming read of 256 MiB, the best of some rounds.

    numpy's maximum of int32 is the load that needs least arithmetic; its loop runs without Python's lock.
    """
    parts = np.array_split(np.ones(_BYTES // 4, np.int32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - began)
    return _BYTES / best
