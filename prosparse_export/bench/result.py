"""The result of `prosparse bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["BenchResult", "LayerTime", "LoopTime", "Spread", "Timing"]


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Summarize ``values``."""
        low, median, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
        return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Timing:
    """One workload, the sparse run and the dense baseline alternating.

    Attributes:
        name: decode or prefill.
        tokens: tokens in the KV cache when decode begins, or tokens of the prompt.
        sparse: tokens per second.
        dense: tokens per second of the dense baseline; None without one.
        ratio: dense time over sparse time, by round; None without a dense baseline.
        seconds: of the sparse run: time per token of decode, or time to the first token of a prompt.
    """

    name: str
    tokens: int
    sparse: Spread
    dense: Spread | None
    ratio: Spread | None
    seconds: float


@dataclass(frozen=True)
class LoopTime:
    """The decode loop of `SparseModel.stream`, with greedy search.

    Attributes:
        microseconds: per token.
        outside_microseconds: per token, outside onnxruntime's call.
        outside_share: the latter as a fraction of the former.
        unbound_ratio: time of a loop over `SparseModel.forward`, which binds no buffers, over that of this loop.
    """

    microseconds: Spread
    outside_microseconds: Spread
    outside_share: Spread
    unbound_ratio: Spread


@dataclass(frozen=True)
class LayerTime:
    """One sparse FFN in decode.

    Attributes:
        module: the PyTorch module that it replaces.
        sparsity: activation sparsity, the fraction of exact zeros at down_proj's input, over the text.
        skipped: fraction of neurons that the operator skips; lower than the sparsity for dReLU.
        microseconds: median per token, from onnxruntime's profile of the sparse run.
        ceiling: upper bound of its speedup: dense bytes over sparse bytes.
    """

    module: str
    sparsity: float
    skipped: float
    microseconds: float
    ceiling: float


@dataclass(frozen=True)
class BenchResult:
    """All measurements.

    Attributes:
        name: file name of the graph.
        machine: processor, instruction set, threads, onnxruntime.
        load_seconds: time to open a session.
        resident_bytes: growth of resident memory by loading; None on systems without /proc.
        file_bytes: size of graph and weights on disk.
        timings: decode, then prefill by prompt length.
        loop: the decode loop outside onnxruntime.
        layers: sparse FFNs in graph order.
        other_microseconds: median per token of decode outside the sparse FFNs, summed by operator type.
        ffn_share: fraction of a dense token's bytes that the FFNs read.
        bandwidth: measured memory bandwidth, bytes per second.
        floor_seconds: bytes that a sparse token reads over the bandwidth.
        ceiling: upper bound of the speedup of decode: dense bytes over sparse bytes.
        reached: measured speedup of decode over the ceiling; None without a dense baseline.
    """

    name: str
    machine: str
    load_seconds: float
    resident_bytes: int | None
    file_bytes: int
    timings: tuple[Timing, ...]
    loop: LoopTime
    layers: tuple[LayerTime, ...]
    other_microseconds: dict[str, float]
    ffn_share: float
    bandwidth: float
    floor_seconds: float
    ceiling: float
    reached: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)
