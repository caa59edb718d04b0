"""Speed and memory of an artifact, sparse against dense, in one process."""

from prosparse_export.bench.measure import BenchOptions, bench
from prosparse_export.bench.result import BenchResult, LayerTime, Timing

__all__ = ["BenchOptions", "BenchResult", "LayerTime", "Timing", "bench"]
