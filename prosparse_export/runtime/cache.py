"""The KV cache as arrays that a caller passes from one call to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cache"]


@dataclass(frozen=True)
class Cache:
    """Keys and values of all past tokens by input name, each ``[batch, kv_heads, past, head_dim]``."""

    values: dict[str, NDArray[np.float32]]

    @classmethod
    def empty(cls, sizes: Mapping[str, tuple[int, int]], batch: int) -> Cache:
        """Return a cache without tokens; ``sizes`` has KV heads and head_dim by input name."""
        return cls({name: np.zeros((batch, heads, 0, dim), np.float32) for name, (heads, dim) in sizes.items()})

    @property
    def length(self) -> int:
        """Past tokens, padding included."""
        return next(iter(self.values.values())).shape[2] if self.values else 0
