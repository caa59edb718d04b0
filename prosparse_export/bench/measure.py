"""Time an artifact: decode and prefill, sparse and dense, and each FFN.

The dense baseline is the same file with ``PROSPARSE_DENSE=1``: the same kernels and weights, every neuron computed. The
ratio is what skipping neurons gains; benchmarks/compare_engines.py compares with other engines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.bandwidth import measure_bandwidth
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.analysis.graph_bytes import ffn_shape, other_bytes
from prosparse_export.analysis.roofline import predict
from prosparse_export.artifact.integrity import check_files
from prosparse_export.bench.loop_overhead import time_loop
from prosparse_export.bench.machine import describe_machine, resident_bytes
from prosparse_export.bench.options import BenchOptions
from prosparse_export.bench.profile import profile_decode
from prosparse_export.bench.result import BenchResult, LayerTime, LoopTime, Timing
from prosparse_export.bench.timing import time_workloads
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.operator_library import check_library
from prosparse_export.runtime.threads import default_threads

__all__ = ["BenchOptions", "bench"]

_SPARSITY_TOKENS = 64


def bench(
    path: Path,
    ids: NDArray[np.int64],
    options: BenchOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> BenchResult:
    """Measure the artifact at ``path`` on the tokens ``ids``, ``[tokens]``, repeated as needed.

    Raises:
        ProSparseError: the graph has no sparse operator or no KV cache, or the options exceed the model's context.
    """
    options = options or BenchOptions()
    threads = options.threads or default_threads()
    graph = read_graph(path)
    nodes = ffn_nodes(graph)
    if not nodes:
        raise ProSparseError(
            f"model: {path}: no sparse FFN operators found",
            hint="export without --decomposed, or without --allow-dense to see why each FFN is dense",
        )
    check_files(path)
    check_library()
    ids = np.resize(ids, max(options.longest, options.context + _SPARSITY_TOKENS))
    bandwidth = measure_bandwidth(threads)
    run = _time(path, ids, options, threads, progress)
    progress("layers", 0, 0)
    decoded = ids[: options.context + options.tokens]
    times, others = profile_decode(path, nodes, decoded, options.context, threads=threads)
    shown = ids[: min(_SPARSITY_TOKENS, run.context or _SPARSITY_TOKENS)]
    layers = measure_activity(path, [shown], threads=threads, progress=progress).layers
    ffns = [ffn_shape(graph, node, layer.skipped) for node, layer in zip(nodes, layers, strict=True)]
    cost = predict(ffns, other_bytes(graph, options.context), bandwidth)
    ratio = run.timings[0].ratio
    return BenchResult(
        name=path.name,
        machine=describe_machine(threads),
        load_seconds=run.load_seconds,
        resident_bytes=run.resident_bytes,
        file_bytes=_file_bytes(path),
        timings=run.timings,
        loop=run.loop,
        layers=tuple(
            LayerTime(layer.module, layer.sparsity, layer.skipped, time_, ffn.speedup)
            for layer, ffn, time_ in zip(layers, ffns, times, strict=True)
        ),
        other_microseconds=others,
        ffn_share=cost.ffn_share,
        bandwidth=bandwidth,
        floor_seconds=cost.sparse_seconds,
        ceiling=cost.speedup,
        reached=None if ratio is None else ratio.median / cost.speedup,
    )


@dataclass(frozen=True)
class _Run:
    """What was measured while the models were loaded."""

    context: int | None
    load_seconds: float
    resident_bytes: int | None
    timings: tuple[Timing, ...]
    loop: LoopTime


def _time(path: Path, ids: NDArray[np.int64], options: BenchOptions, threads: int, progress: ProgressCallback) -> _Run:
    """Load the model and the dense baseline, time them, and release both."""
    progress("load", 0, 0)
    before = resident_bytes()
    began = time.perf_counter()
    model = SparseModel.open(path, threads=threads)
    load_seconds = time.perf_counter() - began
    after = resident_bytes()
    if model.context is not None and options.longest > model.context:
        raise ProSparseError(
            f"context: expected at most {model.context} tokens, got {options.longest} to measure",
            hint="choose shorter prompts, fewer tokens or fewer rounds",
        )
    models = [model]
    if options.dense:
        with _dense_kernels():
            models.append(SparseModel.open(path, threads=threads))
    timings = tuple(time_workloads(models, ids, options, progress))
    del models
    loop = time_loop(model, ids, options, progress)
    growth = None if before is None or after is None else after - before
    return _Run(model.context, load_seconds, growth, timings, loop)


def _file_bytes(path: Path) -> int:
    """Return the size of graph and weights on disk."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


@contextmanager
def _dense_kernels() -> Iterator[None]:
    """Make sessions opened inside compute every neuron: a kernel reads the variable when it is created."""
    previous = os.environ.get("PROSPARSE_DENSE")
    os.environ["PROSPARSE_DENSE"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PROSPARSE_DENSE"]
        else:
            os.environ["PROSPARSE_DENSE"] = previous
