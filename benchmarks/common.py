"""Shared by all benchmarks: the machine's description, runs that take turns, and paired ratios with quartiles."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from prosparse_export.runtime.operator_library import library_info

__all__ = ["Ratio", "help_text", "in_turns", "machine", "paired_ratio"]


def help_text(doc: str | None) -> str:
    """Return a module's docstring as click's help, with its lines as they are: click would join them."""
    return "\b\n" + (doc or "").replace("\n\n", "\n\n\b\n")


def machine() -> dict[str, object]:
    """Return the processor, its cores, the ISA that the operator library uses, and onnxruntime's version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "isa": library_info().isa_used,
        "onnxruntime": onnxruntime.__version__,
    }


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1, pause: float = 0.0
) -> dict[str, list[float]]:
    """Return the seconds of each run by round, after ``warm_up`` rounds that do not count.

    The runs take turns, so that whatever else the machine does meets all of them.

    Args:
        runs: what to time, by name.
        rounds: rounds that count.
        warm_up: rounds before those.
        pause: seconds before each run, for engines whose threads spin on after their work.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
            if number >= 0:
                times[name].append(seconds)
    return times


@dataclass(frozen=True)
class Ratio:
    """A ratio of paired times: median and quartiles over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f}x [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Return the ratio of two runs' times, paired by round."""
    ratios = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    quarter = len(ratios) // 4
    return Ratio(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])
