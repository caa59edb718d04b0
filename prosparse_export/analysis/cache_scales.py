"""Read the scales of an artifact's 8-bit KV cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from prosparse_export.analysis.ffn_nodes import initializer

__all__ = ["LayerScales", "cache_scales"]

LayerScales = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scales of a layer's keys and values, ``[1, kv_heads, 1, head_dim]`` or ``[1]``."""

_KEY, _VALUE = 12, 13  # inputs of GroupQueryAttention


def cache_scales(model: onnx.ModelProto, folder: Path) -> list[LayerScales]:
    """Return the scales by layer; empty if the cache is float32.

    Args:
        model: the graph.
        folder: its folder, for external data.

    Raises:
        ProSparseError: external data cannot be read.
    """
    scales = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention" and len(node.input) > _VALUE and node.input[_KEY]:
            keys, values = (initializer(model, folder, node.input[place]) for place in (_KEY, _VALUE))
            scales.append((keys.astype(np.float32), values.astype(np.float32)))
    return scales
