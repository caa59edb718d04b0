"""Adapters: whole models and FFNs in our runtime, dense onnxruntime, llama.cpp and OpenVINO."""

from __future__ import annotations

from typing import Protocol

import numpy as np

__all__ = ["Engine"]


class Engine(Protocol):
    """A whole model in one engine."""

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Start a new sequence with a prompt ``[tokens]``; the KV cache has room for ``capacity`` tokens."""

    def decode(self, ids: np.ndarray) -> None:
        """Decode one step for each of ``ids``."""
