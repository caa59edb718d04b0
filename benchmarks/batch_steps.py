"""Decode step time by batch size, and prefill time by chunk size, sparse against the dense baseline.

    python benchmarks/batch_steps.py out/tl-i4/m.onnx --threads 2
    python benchmarks/batch_steps.py out/tl-i4/m.onnx --record MACHINE    # for the chart of docs/performance/serving.md

Sequences and prompts are random tokens. Dense: the same kernels compute every neuron. Runs alternate.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
from common import help_text, in_turns, machine, paired_ratio
from measurements import add_session

from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.artifact.model_settings import require_tokenizer
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.row_batch import RowBatch

PROMPT = 128
STEPS = 4  # per round: the first one finds threads asleep


def opened(path: Path, threads: int, rows: int, context: int, *, dense: bool) -> RowBatch:
    """Return the artifact's rows, without tokens."""
    os.environ["PROSPARSE_DENSE"] = str(int(dense))  # read when the session creates its kernels
    model = SparseModel.open(path, threads=threads)
    os.environ["PROSPARSE_DENSE"] = "0"
    return RowBatch(model, rows, context + max(PROMPT, STEPS))


def filled(path: Path, threads: int, rows: int, context: int) -> tuple[dict[str, RowBatch], np.ndarray]:
    """Return sparse and dense rows, each with a prompt of its own, and the prompts, ``[rows, context]``."""
    ids = np.random.default_rng(0).integers(3, require_tokenizer(path.parent).get_vocab_size(), (rows, context))
    sparse, dense = (opened(path, threads, rows, context, dense=kind) for kind in (False, True))
    for row in range(rows):
        sparse.prefill(row, ids[row].tolist())
        dense.write(row, sparse.read(row, 0, context))
    return {"sparse": sparse, "dense": dense}, ids


def step(batch: RowBatch, tokens: list[int]) -> None:
    """Run decode steps of the first rows, and take their tokens back."""
    for _ in range(STEPS):
        batch.step(tokens)
    for row in range(len(tokens)):
        batch.truncate(row, batch.lengths[row] - STEPS)


def prefill(batch: RowBatch, ids: list[int], chunk: int) -> None:
    """Append a prompt to the last row in chunks, and take it back."""
    row = len(batch.lengths) - 1
    before = batch.lengths[row]
    for begin in range(0, len(ids), chunk):
        batch.prefill(row, ids[begin : begin + chunk])
    batch.truncate(row, before)


@click.command(help=help_text(__doc__))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rows", type=int, multiple=True, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--context", type=int, default=128, show_default=True, help="Tokens of each sequence before the steps.")
@click.option("--chunk", type=int, multiple=True, default=(32, 64, 128), show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True)
@click.option("--model", help="The model's name in the results.  [default: the artifact's folder]")
@click.option("--record", metavar="MACHINE", help="Add the results to benchmarks/results/MACHINE.json.")
def main(
    onnx_file: Path,
    threads: int,
    rows: tuple[int, ...],
    context: int,
    chunk: tuple[int, ...],
    rounds: int,
    model: str | None,
    record: str | None,
) -> None:
    """Run the benchmark."""
    batches, ids = filled(onnx_file, threads, max(rows), context)
    prompt = np.resize(ids[0], PROMPT).tolist()
    runs: dict[str, Callable[[], object]] = {}
    for name, batch in batches.items():
        runs[f"{name} first"] = partial(step, batch, ids[:1, 0].tolist())  # finds the other engine's data in the cache
        runs |= {f"{name} step of {n}": partial(step, batch, ids[:n, 0].tolist()) for n in rows}
        runs |= {f"{name} chunks of {n}": partial(prefill, batch, prompt, n) for n in chunk}
    times = in_turns(runs, rounds)
    for name in times:
        if "step of" in name:
            times[name] = [seconds / STEPS for seconds in times[name]]
    click.echo(json.dumps(machine()))
    for kind, counts in (("step of", rows), ("chunks of", chunk)):
        for n in counts:
            sparse, dense = (times[f"{name} {kind} {n}"] for name in ("sparse", "dense"))
            rate = (n if kind == "step of" else PROMPT) / statistics.median(sparse)
            spread = f"{1e3 * statistics.median(sparse):7.1f} ms [{1e3 * min(sparse):.1f}, {1e3 * max(sparse):.1f}]"
            click.echo(f"{kind} {n:3}: {spread} {rate:6.1f} tokens/s, dense/sparse {paired_ratio(dense, sparse)}")
    if record is not None:
        manifest = require_manifest(onnx_file)
        made: dict[str, object] = {"model": model or onnx_file.absolute().parent.name, "threads": threads}
        made |= {"weights": str(manifest.weight_format), "accuracy_level": manifest.accuracy_level, "context": context}
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--record", record)]
        session = {
            "suite": "batch steps",
            "command": shlex.join(["python", "benchmarks/batch_steps.py", *arguments]),
            "date": datetime.date.today().isoformat(),
            "runs": [{**made, **run} for n in rows for run in _runs(times, n)],
        }
        add_session(record, session)


def _runs(times: dict[str, list[float]], rows: int) -> Iterator[dict[str, object]]:
    """Yield a step's speed as `measurements` stores it."""
    sparse = times[f"sparse step of {rows}"]
    for engine, kind in (("ours", "sparse"), ("dense baseline", "dense")):
        seconds = times[f"{kind} step of {rows}"]
        ratio = paired_ratio(seconds, sparse)
        yield {
            "rows": rows,
            "engine": engine,
            "tokens_per_second": {"median": round(rows / statistics.median(seconds), 1)},
            "ratio": {"median": round(ratio.median, 2), "q1": round(ratio.low, 2), "q3": round(ratio.high, 2)},
        }


if __name__ == "__main__":
    main()
