"""Logits and a validation result, for unit tests of validation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prosparse_export.validation import Check, Determinism, Quality, Sparsity, Validation

__all__ = ["random_logits", "small_validation"]


def random_logits(seed: int, tokens: int = 150, vocabulary: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((tokens, vocabulary)).astype(np.float32) * 3


def small_validation(**fields: Any) -> Validation:
    """A result in which one of two checks fails, with ``fields`` replaced."""
    quality = Quality("with library", 10, 11.0, 10.0, 0.1, 0.2, 0.9, 0.99, 0.5)
    checks = (Check("a <b> check", "1", "at most 2", True), Check("top-1 agreement", "90%", "at least 99%", False))
    values: dict[str, Any] = {
        "comparisons": (),
        "max_abs_diff": 1e-3,
        "exact_against": "PyTorch",
        "quality": (quality, quality),
        "lossy": False,
        "greedy_match": (3, 4),
        "greedy_tokens": 4,
        "sparsity": Sparsity(0.85, (0.8, 0.9), 10, (0, 1)),
        "operators": (),
        "stored_weights": None,
        "determinism": Determinism((1, 2), 10, 0, ""),
        "unknown_operators": (),
        "checks": checks,
        "findings": (),
        "quantization_costs": (),
        "explained": False,
        "tokens": 10,
        "texts": {"x.txt": "00"},
        "artifact": {"name": "x.onnx", "sha256": "00", "bytes": 5, "weights": "f32"},
        "versions": {},
        "seconds": {"PyTorch": 1.5},
    }
    return Validation(**{**values, **fields})
