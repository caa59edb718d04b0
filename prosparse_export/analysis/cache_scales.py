"""Read the scales of an artifact's 8-bit KV cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from graph_passes.cached_rows import read_rows
from graph_passes.custom_ops import ATTENTION, DOMAIN, cache_format
from prosparse_export.analysis.ffn_nodes import initializer

__all__ = ["LayerScales", "cache_scales", "cached_values"]

LayerScales = tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]
"""Scales of a layer's keys and values, ``[1, kv_heads, 1, head_dim]`` or ``[1]``; None if each token has its own."""

_KEY, _VALUE = 12, 13  # inputs of GroupQueryAttention


def cached_values(cache: NDArray[np.generic], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the keys or values ``[batch, kv_heads, tokens, head_dim]`` that an 8-bit ``cache`` holds."""
    return read_rows(cache.astype(np.int8)) if scale is None else cache.astype(np.float32) * scale


def cache_scales(model: onnx.ModelProto, folder: Path) -> list[LayerScales]:
    """Return the scales by layer; empty if the cache is float32.

    Args:
        model: the graph.
        folder: its folder, for external data.

    Raises:
        ProSparseError: external data cannot be read.
    """
    scales: list[LayerScales] = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention" and len(node.input) > _VALUE and node.input[_KEY]:
            keys, values = (initializer(model, folder, node.input[place]) for place in (_KEY, _VALUE))
            scales.append((keys.astype(np.float32), values.astype(np.float32)))
        elif node.domain == DOMAIN and node.op_type in ATTENTION and cache_format(node.op_type) == "I8":
            scales.append((None, None))
    return scales
