"""Accuracy level 4 (docs/reference/operators.md): what it applies to, and how large its error is."""

from __future__ import annotations

import math

from graph_passes import FfnFormat, is_quantized
from graph_passes.custom_ops import AccuracyLevel
from prosparse_export.errors import ProSparseError

__all__ = ["LEVEL_4_ERROR", "check_accuracy_level"]

LEVEL_4_ERROR = math.hypot(math.sqrt(32) / 127 / math.sqrt(12), 2.0**-8 / math.sqrt(3))
"""Root mean square error of a matrix product at level 4, relative to the product, at most: a step of 8 bits is 1/127 of
the largest of 32 activations, which is at most sqrt(32) times their root mean square, and weights round to bfloat16."""


def check_accuracy_level(level: AccuracyLevel, *weights: FfnFormat | None) -> None:
    """Check that level 4 has integer weights to apply to.

    Raises:
        ProSparseError: none of ``weights`` is an integer format.
    """
    if level == 4 and not any(own is not None and is_quantized(own) for own in weights):
        raise ProSparseError(
            f"accuracy level: 4 applies to integer weights, got {weights[0] or 'float'} weights",
            hint="pass --weights i8, i4, or nl4, or omit --accuracy-level",
        )
