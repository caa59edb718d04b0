"""What a step of the server costs by the number of sequences, sparse and dense, and a prompt by the size of its chunks.

    python benchmarks/batch_steps.py out/tl-i4/m.onnx --threads 2

Sequences have 128 random tokens each. Dense: the same kernels compute every neuron. The runs take turns.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from common import help_text, in_turns, machine, paired_ratio

from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.row_batch import RowBatch

PROMPT = 128


def opened(path: Path, threads: int, rows: int, *, dense: bool) -> tuple[RowBatch, np.ndarray]:
    """Return the artifact's rows, each with a prompt, and the prompts, ``[rows, PROMPT]``."""
    os.environ["PROSPARSE_DENSE"] = str(int(dense))  # read when the session creates its kernels
    model = SparseModel.open(path, threads=threads)
    os.environ["PROSPARSE_DENSE"] = "0"
    assert model.tokenizer is not None
    ids = np.random.default_rng(0).integers(3, model.tokenizer.get_vocab_size(), (rows, PROMPT))
    batch = RowBatch(model, rows, 2 * PROMPT)
    for row in range(rows):
        batch.prefill(row, ids[row].tolist())
    return batch, ids


def step(batch: RowBatch, tokens: list[int]) -> None:
    """Run a decode step of the first rows, and take its tokens back."""
    batch.step(tokens)
    for row in range(len(tokens)):
        batch.truncate(row, PROMPT)


def prefill(batch: RowBatch, ids: list[int], chunk: int) -> None:
    """Compute a prompt in chunks."""
    batch.truncate(0, 0)
    for begin in range(0, PROMPT, chunk):
        batch.prefill(0, ids[begin : begin + chunk])


@click.command(help=help_text(__doc__))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rows", type=int, multiple=True, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--chunk", type=int, multiple=True, default=(32, 64, 128), show_default=True)
@click.option("--rounds", type=int, default=7, show_default=True)
def main(onnx_file: Path, threads: int, rows: tuple[int, ...], chunk: tuple[int, ...], rounds: int) -> None:
    """Run the benchmark."""
    engines = {name: opened(onnx_file, threads, max(rows), dense=name == "dense") for name in ("sparse", "dense")}
    runs: dict[str, Callable[[], object]] = {}
    for name, (batch, ids) in engines.items():
        runs |= {f"{name} step of {n}": partial(step, batch, ids[:n, 0].tolist()) for n in rows}
        runs |= {f"{name} chunks of {n}": partial(prefill, batch, ids[0].tolist(), n) for n in chunk}
    times = in_turns(runs, rounds)
    click.echo(json.dumps(machine()))
    for kind, counts in (("step of", rows), ("chunks of", chunk)):
        for n in counts:
            sparse, dense = (times[f"{name} {kind} {n}"] for name in ("sparse", "dense"))
            rate = (n if kind == "step of" else PROMPT) / statistics.median(sparse)
            spread = f"{1e3 * statistics.median(sparse):7.1f} ms [{1e3 * min(sparse):.1f}, {1e3 * max(sparse):.1f}]"
            click.echo(f"{kind} {n:3}: {spread} {rate:6.1f} tokens/s, dense/sparse {paired_ratio(dense, sparse)}")


if __name__ == "__main__":
    main()
