"""The RoPE cos/sin caches that a model's own frequencies give."""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

from graph_passes.patterns.rope_cache import rope_cache

__all__ = ["expected_caches"]

_CACHE = re.compile(r"prosparse\.rotary_(cos|sin)\.\d+")


def expected_caches(model: torch.nn.Module, name: str, positions: int) -> list[NDArray[np.float32]]:
    """Return the possible values of initializer ``name``, ``[positions, head_dim / 2]``: one per rotary embedding.

    Args:
        model: the PyTorch model; some have several rotary embeddings for different layers.
        name: name of an initializer; the result is empty unless it is a cos or sin cache.
        positions: rows of the cache.
    """
    match = _CACHE.fullmatch(name)
    if match is None:
        return []
    caches = []
    for path, frequencies in model.named_buffers():
        module, _, buffer = path.rpartition(".")
        if buffer.endswith("inv_freq") and "original" not in buffer:  # original_inv_freq is the copy before scaling
            owner = model.get_submodule(module)
            scale = float(getattr(owner, buffer.removesuffix("inv_freq") + "attention_scaling", 1.0))
            caches.append(rope_cache(match[1], frequencies.float().numpy(), positions, scale))
    return caches
