"""Rows of the 8-bit KV cache of the attention operators; docs/reference/operators.md has the layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CACHE_GROUP", "WINDOWS", "cache_row_bytes", "cached_head_dim", "group_scales", "read_rows", "round_values"]

CACHE_GROUP = 32
"""Values that share a scale."""
WINDOWS = "com.prosparse.windows"
"""Key in a model's metadata: JSON, the sliding window by name of the cache input. The input may have fewer slots than
there are tokens, but at least as many as the window; new tokens then overwrite the oldest ones."""

_LEVELS, _LEAST = np.float32(127), np.float32(2.0**-126)


def cache_row_bytes(head_dim: int) -> int:
    """Return the bytes of a cached key or value: its values, and a bfloat16 scale per group."""
    return head_dim + 2 * -(-head_dim // CACHE_GROUP)


def cached_head_dim(row_bytes: int) -> int:
    """Return the ``head_dim`` whose rows have ``row_bytes`` bytes."""
    return row_bytes - 2 * -(-row_bytes // (CACHE_GROUP + 2))


def group_scales(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each value's scale, like ``x`` ``[..., head_dim]``: max|x| / 127 of its group, rounded up to bfloat16."""
    head_dim = x.shape[-1]
    groups = -(-head_dim // CACHE_GROUP)
    padded = np.zeros((*x.shape[:-1], groups * CACHE_GROUP), np.float32)
    padded[..., :head_dim] = np.abs(x)
    largest = padded.reshape(*x.shape[:-1], groups, CACHE_GROUP).max(-1)
    bits = np.maximum(largest / _LEVELS, _LEAST).view(np.uint32) + np.uint32(0xFFFF)
    scales = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return np.repeat(scales, CACHE_GROUP, -1)[..., :head_dim]


def round_values(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return finite keys or values ``[..., head_dim]`` as the cache holds them."""
    scales = group_scales(x)
    return np.round(x / scales) * scales


def read_rows(rows: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the keys or values ``[..., head_dim]`` in cached ``rows`` ``[..., cache_row_bytes(head_dim)]``."""
    head_dim = cached_head_dim(rows.shape[-1])
    stored = np.ascontiguousarray(rows[..., head_dim:]).view("<u2").astype(np.uint32)
    scales = np.repeat((stored << np.uint32(16)).view(np.float32), CACHE_GROUP, -1)[..., :head_dim]
    values: NDArray[np.float32] = rows[..., :head_dim].astype(np.float32) * scales
    return values
