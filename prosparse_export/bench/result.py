"""The numbers of `prosparse bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["BenchResult", "LayerTime", "Spread", "Timing"]


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
    """One workload, the sparse run and the dense one in turns.

    Attributes:
        name: decode, or prefill.
        tokens: context at the beginning of decode; tokens of the prompt.
        sparse: tokens per second.
        dense: tokens per second; None if there is no dense run.
        ratio: dense time over sparse time, by round; None likewise.
        seconds: of the sparse run: a token of decode; the whole prompt, which is the time to the first token.
    """

    name: str
    tokens: int
    sparse: Spread
    dense: Spread | None
    ratio: Spread | None
    seconds: float


@dataclass(frozen=True)
class LayerTime:
    """One sparse block in decode.

    Attributes:
        module: the PyTorch module that it replaces.
        sparsity: activation sparsity, the share of exact zeros at down_proj's input, over the text.
        skipped: share of neurons that the operator skips; lower than the sparsity for dReLU.
        microseconds: median per token, by onnxruntime's profile of the sparse run.
        ceiling: dense bytes over sparse bytes.
    """

    module: str
    sparsity: float
    skipped: float
    microseconds: float
    ceiling: float


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        name: the graph's file.
        machine: processor, instruction set, threads, onnxruntime.
        dense: what the dense run is.
        load_seconds: from the file to a session that is ready.
        resident_bytes: growth of resident memory by loading; None where the system does not say.
        file_bytes: graph and weights on disk.
        timings: decode first, then prefill by length.
        layers: sparse blocks in order.
        other_microseconds: medians per token of decode, summed by kind of operator, outside the sparse blocks.
        ffn_share: of a dense token's bytes, those of the sparse blocks.
        bandwidth: bytes per second, measured streaming.
        floor_seconds: the sparse token's bytes over the bandwidth.
        ceiling: the most that skipping can gain in decode, by bytes.
        reached: measured ratio of decode over the ceiling; None without a dense run.
    """

    name: str
    machine: str
    dense: str
    load_seconds: float
    resident_bytes: int | None
    file_bytes: int
    timings: tuple[Timing, ...]
    layers: tuple[LayerTime, ...]
    other_microseconds: dict[str, float]
    ffn_share: float
    bandwidth: float
    floor_seconds: float
    ceiling: float
    reached: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)
