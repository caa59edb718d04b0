"""The KV cache: arrays that a caller passes from call to call, or buffers that attention extends in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["Cache", "CacheBuffers", "CacheInput", "cache_inputs"]

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}
_STEP = 256  # tokens: buffers grow by this or by a quarter, so that copies cost less than reading the cache does


@dataclass(frozen=True)
class CacheInput:
    """A KV cache input ``[batch, kv_heads, tokens, head_dim]`` of a graph.

    Attributes:
        kv_heads: number of KV heads.
        head_dim: elements per head.
        dtype: float32, float16, or int8 (``--kv-cache i8``).
    """

    kv_heads: int
    head_dim: int
    dtype: type[np.generic] = np.float32

    def array(self, batch: int, tokens: int) -> NDArray[np.generic]:
        """Return an uninitialized array for ``tokens`` tokens per row."""
        return np.empty((batch, self.kv_heads, tokens, self.head_dim), self.dtype)


def cache_inputs(session: onnxruntime.InferenceSession, prefix: str = "past_key_values.") -> dict[str, CacheInput]:
    """Return each KV cache input whose name contains ``prefix``, by name, in graph order."""
    return {
        value.name: CacheInput(int(value.shape[1]), int(value.shape[3]), _TYPES[value.type])
        for value in session.get_inputs()
        if prefix in value.name
    }


@dataclass(frozen=True)
class Cache:
    """Keys and values of all past tokens by input name, each ``[batch, kv_heads, past, head_dim]``."""

    values: dict[str, NDArray[np.generic]]

    @classmethod
    def empty(cls, inputs: Mapping[str, CacheInput], batch: int) -> Cache:
        """Return a cache without tokens for ``inputs``, from `cache_inputs`."""
        return cls({name: value.array(batch, 0) for name, value in inputs.items()})

    @property
    def length(self) -> int:
        """Past tokens, padding included."""
        return next(iter(self.values.values())).shape[2] if self.values else 0

    def row(self, row: int) -> Cache:
        """Return the cache of one row, as a batch of 1 that shares its memory."""
        return Cache({name: array[row : row + 1] for name, array in self.values.items()})

    @classmethod
    def stacked(cls, rows: list[Cache]) -> Cache:
        """Return the batch of ``rows``, each with the same number of tokens."""
        return cls({name: np.concatenate([row.values[name] for row in rows]) for name in rows[0].values})


class CacheBuffers:
    """KV cache buffers that are input and output of every call, for attention that appends in place.

    A row's tokens begin at slot 0. A row of a buffer is contiguous memory, so that a prompt can be computed alone, as a
    batch of 1, into its row. Buffers grow by a quarter when they are full: a chat does not reserve the whole context.

    Args:
        inputs: from `cache_inputs`.
        batch: number of rows.
        limit: maximum number of tokens per row.
    """

    def __init__(self, inputs: Mapping[str, CacheInput], batch: int, limit: int) -> None:
        self._inputs = dict(inputs)
        self._batch, self._limit = batch, limit
        self.slots = 0
        self.arrays = {name: value.array(batch, 0) for name, value in inputs.items()}

    def reserve(self, tokens: int) -> bool:
        """Make room for ``tokens`` tokens per row, at most the limit; return whether the buffers have moved."""
        if tokens <= self.slots:
            return False
        more = max(_STEP, self.slots // 4)
        slots = min(self._limit, max(self.slots + more, -(-tokens // _STEP) * _STEP))
        for name, value in self._inputs.items():  # one by one: the old buffer is freed before the next grows
            grown = value.array(self._batch, slots)
            grown[:, :, : self.slots] = self.arrays[name]
            self.arrays[name] = grown
        self.slots = slots
        return True

    def row(self, row: int) -> dict[str, NDArray[np.generic]]:
        """Return the buffers of one row, as a batch of 1 that shares their memory."""
        return {name: array[row : row + 1] for name, array in self.arrays.items()}
