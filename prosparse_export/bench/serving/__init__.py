"""Load on an OpenAI-compatible server: throughput and latencies by number of clients."""

from prosparse_export.bench.serving.launch import launched
from prosparse_export.bench.serving.load import run_load
from prosparse_export.bench.serving.result import LoadOptions, LoadResult

__all__ = ["LoadOptions", "LoadResult", "launched", "run_load"]
