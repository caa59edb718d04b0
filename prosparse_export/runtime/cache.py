"""The KV cache: arrays that a caller passes from call to call, or buffers that attention extends in place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from graph_passes.cached_rows import WINDOWS

__all__ = ["Cache", "CacheBuffers", "CacheInput", "cache_inputs"]

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}
_STEP = 256  # tokens: buffers grow by this or by a quarter, so that copies cost less than reading the cache does
_CUT = 512  # slots: attention sums over as many at a time, so a window's buffer gives the bits of a complete one


@dataclass(frozen=True)
class CacheInput:
    """A KV cache input ``[batch, kv_heads, tokens, head_dim]`` of a graph.

    Attributes:
        kv_heads: number of KV heads.
        head_dim: elements per head.
        dtype: float32, float16, or int8 (``--kv-cache i8``).
        window: tokens that a query sees, if attention accepts a buffer of at least as many slots and overwrites the
            oldest tokens; 0 if it needs all of them.
    """

    kv_heads: int
    head_dim: int
    dtype: type[np.generic] = np.float32
    window: int = 0

    def array(self, batch: int, tokens: int) -> NDArray[np.generic]:
        """Return an uninitialized array for ``tokens`` tokens per row."""
        return np.empty((batch, self.kv_heads, tokens, self.head_dim), self.dtype)

    def with_room(self, past: NDArray[np.generic], tokens: int) -> NDArray[np.generic]:
        """Return ``past``, with slots for ``tokens`` new ones where they would overwrite what a window has left."""
        return np.pad(past, ((0, 0), (0, 0), (0, tokens), (0, 0))) if self.window else past


def cache_inputs(session: onnxruntime.InferenceSession, prefix: str = "past_key_values.") -> dict[str, CacheInput]:
    """Return each KV cache input whose name contains ``prefix``, by name, in graph order."""
    windows: dict[str, int] = json.loads(session.get_modelmeta().custom_metadata_map.get(WINDOWS, "{}"))
    return {
        value.name: CacheInput(int(value.shape[1]), int(value.shape[3]), _TYPES[value.type], windows.get(value.name, 0))
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
        chunk: number of tokens that are appended at once; inputs with a window then keep no more than that needs. None
            if all tokens are kept, so that a row can be read or shortened.
    """

    def __init__(self, inputs: Mapping[str, CacheInput], batch: int, limit: int, *, chunk: int | None = None) -> None:
        self._inputs = dict(inputs)
        self._batch, self._limit, self._chunk = batch, limit, chunk
        self.slots = 0
        self.arrays = {name: value.array(batch, 0) for name, value in inputs.items()}

    def reserve(self, tokens: int) -> bool:
        """Make room for ``tokens`` tokens per row, at most the limit; return whether the buffers have moved."""
        if tokens <= self.slots:
            return False
        more = max(_STEP, self.slots // 4)
        slots = min(self._limit, max(self.slots + more, -(-tokens // _STEP) * _STEP))
        for name, value in self._inputs.items():  # one by one: the old buffer is freed before the next grows
            grown = value.array(self._batch, min(slots, self._most(value)))
            old = self.arrays[name]
            if grown.shape != old.shape:
                grown[:, :, : old.shape[2]] = old
                self.arrays[name] = grown
        self.slots = slots
        return True

    def _most(self, value: CacheInput) -> int:
        """Return the number of slots that ``value`` grows to."""
        if not value.window or self._chunk is None:
            return self._limit
        return min(self._limit, -(-(value.window + self._chunk - 1) // _CUT) * _CUT)

    def row(self, row: int) -> dict[str, NDArray[np.generic]]:
        """Return the buffers of one row, as a batch of 1 that shares their memory."""
        return {name: array[row : row + 1] for name, array in self.arrays.items()}
