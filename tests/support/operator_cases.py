"""Every operator in every format, with random weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graph_passes import (
    FFN_FORMATS,
    FORMAT_SPECS,
    FORMATS,
    FfnFormat,
    Format,
    custom_ops,
    dequantize,
    format_of,
    quantize,
)

Arrays = dict[str, NDArray[np.generic]]
KINDS = {"gated": custom_ops.sparse_gated_ffn, "ungated": custom_ops.sparse_ffn, "linear": custom_ops.linear}
MATRICES = {"gated": ("_gate", "_up", "_down"), "ungated": ("_up", "_down"), "linear": ("",)}
KIND_FORMATS = {"gated": FFN_FORMATS, "ungated": FFN_FORMATS, "linear": FORMATS}
CASES = [(kind, weights) for kind, formats in KIND_FORMATS.items() for weights in formats]


def stored(matrix: NDArray[np.float32], weights: Format, suffix: str) -> tuple[Arrays, NDArray[np.float64]]:
    """The initializers of one matrix, and the values that they stand for."""
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        array = matrix.astype(spec.dtype)
        return {f"w{suffix}": array}, array.astype(np.float64)
    integers, scales = quantize(matrix, weights)
    exact = dequantize(integers, scales, matrix.shape[1], weights).astype(np.float64)
    return {f"w{suffix}": integers, f"s{suffix}": scales}, exact


def make(
    kind: str, weights: FfnFormat, d_model: int, d_ff: int, rng: np.random.Generator, shift: float = 0.0
) -> tuple[Arrays, dict[str, NDArray[np.float64]]]:
    """The initializers of an operator, and the values that they stand for; ``shift`` lowers the pre-activations."""
    inputs: Arrays = {}
    exact: dict[str, NDArray[np.float64]] = {}
    for suffix in MATRICES[kind]:
        matrix = rng.standard_normal((d_ff, d_model)).astype(np.float32)
        own = format_of(weights, is_down=suffix == "_down")
        arrays, exact[f"w{suffix}"] = stored(matrix, own, suffix)
        bias = rng.standard_normal(d_model if suffix == "_down" else d_ff).astype(np.float32)
        if suffix == ("_gate" if kind == "gated" else "_up"):
            bias -= np.float32(shift)
        inputs |= {**arrays, f"b{suffix}": bias}
        exact[f"b{suffix}"] = bias.astype(np.float64)
    return inputs, exact
