"""Tables of cos and sin by position, as the model's own frequencies make them."""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray

from graph_passes.patterns.rope_cache import rope_cache

__all__ = ["expected_tables"]

_TABLE = re.compile(r"prosparse\.rotary_(cos|sin)\.\d+")


def expected_tables(model: torch.nn.Module, name: str, positions: int) -> list[NDArray[np.float32]]:
    """Return what initializer ``name`` may hold, ``[positions, head_dim / 2]``: one table for each rotary embedding.

    Args:
        model: PyTorch's model; some have different embeddings for different layers.
        name: of an initializer; the result is empty if it is no such table.
        positions: rows of the table.
    """
    match = _TABLE.fullmatch(name)
    if match is None:
        return []
    tables = []
    for path, frequencies in model.named_buffers():
        module, _, buffer = path.rpartition(".")
        if buffer.endswith("inv_freq") and "original" not in buffer:  # that is what it was before any scaling
            owner = model.get_submodule(module)
            scale = float(getattr(owner, buffer.removesuffix("inv_freq") + "attention_scaling", 1.0))
            tables.append(rope_cache(match[1], frequencies.float().numpy(), positions, scale))
    return tables
