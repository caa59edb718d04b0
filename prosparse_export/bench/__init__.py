"""Measure speed and memory of an artifact, sparse against a dense baseline, in one process."""

from prosparse_export.bench.measure import BenchOptions, bench
from prosparse_export.bench.result import BenchResult, LayerTime, LoopTime, Timing

__all__ = ["BenchOptions", "BenchResult", "LayerTime", "LoopTime", "Timing", "bench"]
