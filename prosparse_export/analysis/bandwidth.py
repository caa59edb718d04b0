"""Measure memory bandwidth, the bound on decode speed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["measure_bandwidth"]

_BYTES = 256 << 20  # larger than any cache
_ROUNDS = 5


def measure_bandwidth(threads: int) -> float:
    """Return the read bandwidth in bytes per second: the best of several passes over 256 MiB.

    The reduction is numpy's maximum of int32, which needs little arithmetic and releases the GIL.
    """
    parts = np.array_split(np.ones(_BYTES // 4, np.int32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - began)
    return _BYTES / best
