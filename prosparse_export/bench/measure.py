"""Time an artifact: decode and prefill, the sparse run and the operators' own dense run in turns.

The dense twin is the same file with ``PROSPARSE_DENSE=1``: the same kernels and the same weights, every neuron
computed. That is what sparsity gains; how the kernels do against other engines is benchmarks/compare_engines.py's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.activation_counts import LayerActivity, measure_activity
from prosparse_export.analysis.bandwidth import measure_bandwidth
from prosparse_export.analysis.ffn_nodes import FfnNode, ffn_nodes, read_graph
from prosparse_export.analysis.graph_bytes import ffn_shape, other_bytes
from prosparse_export.analysis.roofline import predict
from prosparse_export.artifact.integrity import check_files
from prosparse_export.bench.profile import profile_decode
from prosparse_export.bench.result import BenchResult, LayerTime, Spread, Timing
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.runtime.decode_loop import Decoder
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.operator_library import check_library, library_info
from prosparse_export.runtime.threads import default_threads

__all__ = ["BenchOptions", "bench"]

_SPARSITY_TOKENS = 64
_WARM = 2  # rounds that do not count


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        threads: intra-op threads; None for one per physical core.
        context: tokens in the cache when decode begins.
        tokens: tokens decoded in a round.
        prefill: lengths of prompts.
        rounds: that count; of prefill half as many, at least 3.
        dense: also run the dense twin, which needs the weights in memory a second time.
    """

    threads: int | None = None
    context: int = 128
    tokens: int = 16
    prefill: tuple[int, ...] = (16, 128, 512)
    rounds: int = 9
    dense: bool = True


def bench(
    path: Path,
    ids: NDArray[np.int64],
    options: BenchOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> BenchResult:
    """Measure the artifact at ``path`` on the tokens ``ids``, ``[tokens]``; too few are repeated.

    Raises:
        ProSparseError: the graph has no sparse operator or no cache, or the context is too short for the options.
    """
    options = options or BenchOptions()
    threads = options.threads or default_threads()
    graph = read_graph(path)
    nodes = ffn_nodes(graph)
    if not nodes:
        raise ProSparseError(
            f"model: {path}: expected sparse feed-forward operators, got none",
            hint="export it without --decomposed, or without --allow-dense to see why no block is sparse",
        )
    longest = max(options.context + options.tokens * (options.rounds + _WARM), *options.prefill)
    check_files(path)
    check_library()
    ids = np.resize(ids, max(longest, options.context + _SPARSITY_TOKENS))
    bandwidth = measure_bandwidth(threads)
    progress("load", 0, 0)
    before = _resident()
    began = time.perf_counter()
    sparse = SparseModel.open(path, threads=threads)
    load_seconds = time.perf_counter() - began
    after = _resident()
    if sparse.context is not None and longest > sparse.context:
        raise ProSparseError(
            f"context: expected at most {sparse.context} tokens, got {longest} to measure",
            hint="ask for shorter prompts, fewer tokens or fewer rounds",
        )
    models = [sparse]
    if options.dense:
        with _dense_kernels():
            models.append(SparseModel.open(path, threads=threads))
    timings = [_decode(models, ids, options, progress)]
    timings += [_prefill(models, ids, length, options, progress) for length in options.prefill]
    shown = ids[: min(_SPARSITY_TOKENS, sparse.context or _SPARSITY_TOKENS)]
    del models, sparse  # one copy of the weights at a time from here on
    progress("layers", 0, 0)
    blocks, others = profile_decode(
        path, nodes, ids[: options.context + options.tokens], options.context, threads=threads
    )
    activity = measure_activity(path, [shown], threads=threads, progress=progress)
    return _result(
        path,
        graph,
        nodes,
        options,
        threads,
        bandwidth,
        load_seconds,
        before,
        after,
        timings,
        blocks,
        others,
        activity.layers,
    )


def _result(
    path: Path,
    graph: onnx.ModelProto,
    nodes: list[FfnNode],
    options: BenchOptions,
    threads: int,
    bandwidth: float,
    load_seconds: float,
    before: int | None,
    after: int | None,
    timings: list[Timing],
    blocks: list[float],
    others: dict[str, float],
    activity: Sequence[LayerActivity],
) -> BenchResult:
    ffns = [ffn_shape(graph, node, layer.skipped) for node, layer in zip(nodes, activity, strict=True)]
    cost = predict(ffns, other_bytes(graph, options.context), bandwidth)
    ratio = timings[0].ratio
    data = path.with_name(f"{path.name}.data")
    return BenchResult(
        name=path.name,
        machine=", ".join(
            [
                _processor(),
                f"ISA {library_info().isa_used}",
                f"{threads} threads",
                f"onnxruntime {onnxruntime.__version__}",
            ]
        ),
        dense="the operators' own dense run" if options.dense else "none",
        load_seconds=load_seconds,
        resident_bytes=None if before is None or after is None else after - before,
        file_bytes=path.stat().st_size + (data.stat().st_size if data.is_file() else 0),
        timings=tuple(timings),
        layers=tuple(
            LayerTime(layer.module, layer.sparsity, layer.skipped, time_, ffn.speedup)
            for layer, ffn, time_ in zip(activity, ffns, blocks, strict=True)
        ),
        other_microseconds=others,
        ffn_share=cost.ffn_share,
        bandwidth=bandwidth,
        floor_seconds=cost.sparse_seconds,
        ceiling=cost.speedup,
        reached=None if ratio is None else ratio.median / cost.speedup,
    )


def _decode(
    models: list[SparseModel], ids: NDArray[np.int64], options: BenchOptions, progress: ProgressCallback
) -> Timing:
    """Feed the text's own tokens, the same to both, each model a round at a time."""
    total = options.context + options.tokens * (options.rounds + _WARM)
    decoders = [_filled(model, ids[: options.context], total) for model in models]
    times: list[list[float]] = []
    for number in range(options.rounds + _WARM):
        progress("decode", number, options.rounds + _WARM)
        begin = options.context + number * options.tokens
        times.append([_steps(decoder, ids[begin : begin + options.tokens]) for decoder in decoders])
    return _timing("decode", options.context, times[_WARM:], options.tokens, 1 / options.tokens)


def _filled(model: SparseModel, ids: NDArray[np.int64], capacity: int) -> Decoder:
    decoder = model.decoder(1, capacity)
    decoder.prefill(ids[None], np.ones((1, len(ids)), np.int64))
    return decoder


def _steps(decoder: Decoder, ids: NDArray[np.int64]) -> float:
    began = time.perf_counter()
    for token in ids:
        decoder.step(token).argmax()
    return time.perf_counter() - began


def _prefill(
    models: list[SparseModel], ids: NDArray[np.int64], length: int, options: BenchOptions, progress: ProgressCallback
) -> Timing:
    rounds = max(3, options.rounds // 2) + 1
    times: list[list[float]] = []
    for number in range(rounds):
        progress(f"prefill of {length}", number, rounds)
        times.append([])
        for model in models:
            began = time.perf_counter()
            _filled(model, ids[:length], length)
            times[-1].append(time.perf_counter() - began)
    return _timing("prefill", length, times[1:], length, 1.0)


def _timing(name: str, tokens: int, times: list[list[float]], count: int, scale: float) -> Timing:
    """Summarize rounds of (sparse, dense) seconds for ``count`` tokens; ``scale`` makes of them `Timing.seconds`."""
    columns = list(zip(*times, strict=True))
    rates = [Spread.of([count / t for t in column]) for column in columns]
    ratio = Spread.of([dense / sparse for sparse, dense in times]) if len(columns) > 1 else None
    return Timing(name, tokens, rates[0], rates[1] if ratio else None, ratio, float(np.median(columns[0])) * scale)


@contextmanager
def _dense_kernels() -> Iterator[None]:
    """Make sessions opened inside compute every neuron: the library reads the variable when it makes a kernel."""
    previous = os.environ.get("PROSPARSE_DENSE")
    os.environ["PROSPARSE_DENSE"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PROSPARSE_DENSE"]
        else:
            os.environ["PROSPARSE_DENSE"] = previous


def _resident() -> int | None:
    """Return this process's resident memory in bytes, or None where /proc does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "this machine")
