"""Run two ONNX files on the same random inputs and compare their outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import register

__all__ = ["largest_difference"]

_TOKENS = 4
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def largest_difference(one: Path, other: Path, *, library: bool) -> tuple[float, float] | str:
    """Return the largest difference of the float outputs and their largest magnitude, or why they cannot be compared.

    Args:
        one: the source.
        other: the optimized file.
        library: register the operator library for ``other``.

    Raises:
        ProSparseError: ``one`` runs and ``other`` does not.
    """
    try:
        before = _session(one, library=False, as_written=True)
        feeds = _feeds(before, _head_size(one.parent))
        expected = before.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions share no base class
        return f"onnxruntime does not run the source on random inputs: {_line(error)}"
    del before  # free its weights first
    try:
        actual = _session(other, library=library, as_written=True).run(None, feeds)
    except Exception as error:
        raise ProSparseError(
            f"check: {other.name}: onnxruntime runs the source, but not the optimized file: {_line(error)}",
            hint="please report this, and name the file's exporter",
        ) from error
    difference, size = 0.0, 0.0
    for x, y in zip(expected, actual, strict=True):
        if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.floating) and x.size:
            if x.shape != y.shape:
                return math.inf, size
            size = max(size, float(np.abs(x).astype(np.float64).max()))
            difference = float(np.maximum(difference, np.abs(x.astype(np.float64) - y).max()))  # keeps a NaN
    return difference, size


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _session(path: Path, *, library: bool, as_written: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if as_written:  # onnxruntime's own fusions of integer weights round activations
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if library:
        register(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _head_size(folder: Path) -> int:
    """Return the KV cache's last dimension by genai_config.json: in its graphs it is symbolic."""
    path = folder / "genai_config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["model"]["decoder"]["head_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return _TOKENS


def _feeds(session: onnxruntime.InferenceSession, head_size: int) -> dict[str, NDArray[np.generic]]:
    """Return inputs: batch size 1, 4 tokens, an empty KV cache, small integers, normally distributed floats."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in session.get_inputs():
        shape = [_size(dim, axis, value.name, head_size) for axis, dim in enumerate(value.shape)]
        dtype = _TYPES[value.type]
        array: NDArray[np.generic]
        if "mask" in value.name or dtype == np.bool_:
            array = np.ones(shape)
        elif "position" in value.name:
            array = np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)
        elif np.issubdtype(dtype, np.integer):
            array = rng.integers(1, 8, shape)
        else:
            array = rng.standard_normal(shape)
        feeds[value.name] = np.asarray(array).astype(dtype)
    return feeds


def _size(dim: object, axis: int, name: str, head_size: int) -> int:
    if isinstance(dim, int) and dim > 0:
        return dim
    text = str(dim).lower()
    if axis == 0 or "batch" in text:
        return 1
    is_cache = name.startswith(("past", "decoder.past")) or ".past" in name
    if is_cache and axis == 3:
        return head_size
    return 0 if is_cache and ("past" in text or axis == 2) and "+" not in text else _TOKENS
