"""A PyTorch KV cache that rounds keys and values as an artifact with an 8-bit cache does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from graph_passes.cached_rows import round_values
from graph_passes.quantize_kv_cache import CACHE_LEVELS
from prosparse_export.analysis.cache_scales import LayerScales

__all__ = ["RoundedCache", "cache_rounding"]


def cache_rounding(rounded: NDArray[np.float32], unrounded: NDArray[np.float32]) -> float:
    """Return how far rounding the KV cache moves a logit, which is also the bound on one entry that rounds otherwise.

    Two exact implementations may round a key or value to neighboring levels, where their float32 sums lie on both sides
    of the middle. That moves one entry by a step. Rounding moves every entry by up to half a step, with a variance of
    step^2 / 12 each, so that one entry's step is at most sqrt(12) standard deviations of what rounding all of them does
    to a logit; the largest of many logits is about as many.

    Args:
        rounded: PyTorch's logits with a rounded cache.
        unrounded: its logits of the same tokens with a float32 cache.
    """
    return float(np.abs(rounded - unrounded).max())


class RoundedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """A KV cache whose entries are rounded to 8 bits when they are added.

    Args:
        scales: by layer, from `cache_scales`.
    """

    def __init__(self, scales: Sequence[LayerScales]) -> None:
        super().__init__()
        self._scales = scales

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, ``[batch, kv_heads, tokens, head_dim]``; return all of the layer, rounded."""
        keys, values = self._scales[layer_idx]
        rounded = _rounded(key_states, keys), _rounded(value_states, values)
        result: tuple[torch.Tensor, torch.Tensor] = super().update(*rounded, layer_idx, *args, **kwargs)
        return result


def _rounded(states: torch.Tensor, scale: NDArray[np.float32] | None) -> torch.Tensor:
    if scale is None:
        return torch.from_numpy(round_values(states.float().numpy())).to(states.dtype)
    step = torch.from_numpy(scale)
    levels = (states.float() / step).round().clamp(-CACHE_LEVELS - 1, CACHE_LEVELS)
    return (levels * step).to(states.dtype)
