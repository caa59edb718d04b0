"""Accuracy, size and decode speed of checkpoints in every weight format: one table for each.

    python benchmarks/accuracy.py models/demo
    python benchmarks/accuracy.py models/demo SPARSE_SMOLLM2 --json accuracy.json
    python benchmarks/accuracy.py MODEL_DIR --text mine.txt --max-tokens 8192 --formats f32,i4

Each format is exported, validated (every check, on the same text) and timed: greedy decode of one sequence, sparse
and dense (the same file without the library) in turns in one process, medians and quartiles of the ratio.
The last column is validate's time as a multiple of the three runs by themselves: PyTorch, without and with library
over the same windows. A failed check ends the run with exit 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from prosparse_export import export_model
from prosparse_export.export.export import ExportOptions
from prosparse_export.runtime.model import SparseModel
from prosparse_export.validation import Validation, ValidationOptions, default_text, read_text, validate

_ROUNDS, _STEPS = 7, 24


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", "text_file", type=click.Path(path_type=Path))
@click.option("--max-tokens", default=2048, show_default=True)
@click.option("--step-tokens", default=512, show_default=True, help="Computed one by one, as validate's.")
@click.option("--greedy", default=64, show_default=True, help="Generated per prompt, as validate's.")
@click.option("--formats", default="f32,bf16,f16,i8,i4i8,i4", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--decode/--no-decode", default=True, show_default=True, help="Time decoding too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here too.")
def main(
    models: tuple[Path, ...],
    text_file: Path | None,
    max_tokens: int,
    step_tokens: int,
    greedy: int,
    formats: str,
    threads: int,
    decode: bool,
    json_file: Path | None,
) -> None:
    """Print the table for each of MODELS, model folders."""
    text = read_text(text_file) if text_file else default_text()
    options = ValidationOptions(tokens=max_tokens, threads=threads, step_tokens=step_tokens, greedy=greedy)
    passed, rows = True, []
    for model in models:
        click.echo(f"\n{model}, {max_tokens} tokens, {threads} threads")
        click.echo(
            "| weights | MB | perplexity | change | KL mean | top-1 | sparsity | sparse tok/s | x dense | time |"
        )
        click.echo("|---|---|---|---|---|---|---|---|---|---|")
        for weights in formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                path = export_model(model, Path(folder) / "m.onnx", ExportOptions(weights=weights)).path  # type: ignore[arg-type]
                began = time.perf_counter()
                result = validate(model, path, options, text=text)
                seconds = time.perf_counter() - began
                speed = _decode(path, threads) if decode else None
            click.echo(_row(weights, result, seconds, speed))
            rows.append({"model": str(model), "weights": weights, "decode": speed, **result.to_dict()})
            passed &= result.passed
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if passed else 1)


def _row(weights: str, result: Validation, seconds: float, speed: tuple[float, ...] | None) -> str:
    q = result.quality[1]
    runs = sum(s for stage, s in result.seconds.items() if stage.startswith(("PyTorch", "with")))
    mark = "" if result.passed else " FAILED"
    sparsity = result.sparsity.mean if result.sparsity is not None else 0.0
    rate, ratio = "-", "-"
    if speed is not None:
        rate, ratio = f"{speed[0]:.0f}", f"{speed[2]:.2f} [{speed[1]:.2f}, {speed[3]:.2f}]"
    return (
        f"| {weights}{mark} | {result.artifact['bytes'] / 1e6:.1f} | {q.perplexity:.3f} | {q.perplexity_increase:+.3%} "
        f"| {q.kl_mean:.1e} | {q.top1:.2%} | {sparsity:.2%} | {rate} | {ratio} | {seconds / runs:.2f} |"
    )


def _decode(path: Path, threads: int) -> tuple[float, float, float, float]:
    """Return tokens/s with the library, and the quartiles of its ratio to the dense twin."""
    models = [SparseModel.open(path, library=library, threads=threads) for library in (True, False)]
    models = [replace(model, stop=frozenset()) for model in models]  # else a text may end before _STEPS tokens
    times = np.zeros((_ROUNDS, 2))
    for number in range(-1, _ROUNDS):
        for i, model in enumerate(models):
            began = time.perf_counter()
            count = sum(1 for _ in model.stream([[5, 6, 7]], max_new_tokens=_STEPS))
            if number >= 0:  # the first round warms up
                times[number, i] = time.perf_counter() - began
            if count != _STEPS:
                raise RuntimeError(f"decode of {path}: expected {_STEPS} tokens, got {count}")
    low, middle, high = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.5, 0.75])
    return _STEPS / float(np.median(times[:, 0])), float(low), float(middle), float(high)


if __name__ == "__main__":
    main()
