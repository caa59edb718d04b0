"""Repacking at session creation: seconds for 1 GB of stored weights, by format and threads.

What is timed is all of `InferenceSession(...)` on a file in the page cache: onnxruntime's own part is a few
milliseconds. The library packs with as many threads as the process may use processors, so threads are set by the
processor affinity (Linux). Rounds alternate between the thread counts; medians and the range are printed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from ffn_models import Blocks, Shape

from graph_passes import FFN_FORMATS

SHAPE = Shape("llama-2-7b", 4096, 11008)


def seconds(blocks: Blocks, threads: int) -> float:
    """Return how long a session of all layers takes to be made with so many processors."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(processors)[:threads])
    try:
        start = time.perf_counter()
        blocks.session(0.89, threads)
        return time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, processors)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--weights", type=click.Choice(FFN_FORMATS), multiple=True, help="[default: all]")
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(weights: tuple[str, ...], threads: tuple[int, ...], rounds: int) -> None:
    """Measure how long the operators take to repack 1 GB of weights."""
    available = len(os.sched_getaffinity(0))
    if max(threads) > available:
        raise click.UsageError(f"--threads: expected at most {available}, the processors of this process")
    x = np.random.default_rng(1).standard_normal((1, SHAPE.d_model), np.float32)
    for kind in weights or FFN_FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            blocks = Blocks(SHAPE, kind, x, Path(folder), working_set=10**9)
            stored = blocks.count * SHAPE.cost(kind).dense_bytes / 1e9
            seconds(blocks, max(threads))  # warm: the file is in the page cache from here on
            times: dict[int, list[float]] = {count: [] for count in threads}
            for _ in range(rounds):
                for count in threads:
                    times[count].append(seconds(blocks, count) / stored)
            for count in threads:
                click.echo(
                    f"{kind:>5} {count}T: {statistics.median(times[count]):.2f} s per GB"
                    f" [{min(times[count]):.2f}, {max(times[count]):.2f}], {stored:.2f} GB"
                )


if __name__ == "__main__":
    main()
