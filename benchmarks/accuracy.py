"""Accuracy, size and decode speed of checkpoints in every weight format: one table for each.

    python benchmarks/accuracy.py models/demo
    python benchmarks/accuracy.py models/demo SPARSE_SMOLLM2 -o accuracy.json
    python benchmarks/accuracy.py MODEL_DIR --text mine.txt --max-tokens 8192 --formats f32,i4
    python benchmarks/accuracy.py MODEL_DIR --engines --text a.txt --text b.txt      # beside llama.cpp's formats
    python benchmarks/accuracy.py MODEL_DIR --engines --text a.txt --export "mine: --weights i4 --profile-text mine.txt"
    python benchmarks/accuracy.py MODEL_DIR --engines --text a.txt --window 4096 --export "i8: --kv-cache i8"

Each format is exported, validated (every check, on the same text) and timed: greedy decode of one sequence, with the
operator library and without it (dense), in turns in one process, medians and quartiles of the ratio. The last column
is validate's time over the sum of its three runs alone: PyTorch, dense, sparse. Exit 1 if a check fails.

--engines prints another table instead: size, perplexity and KL divergence by text, see engine_accuracy.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import click
from common import Ratio, in_turns, paired_ratio

from prosparse_export import export_model
from prosparse_export.export import ExportOptions
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import BUNDLED, default_text, read_text
from prosparse_export.validation import Validation, ValidationOptions, validate

_ROUNDS, _STEPS = 7, 24


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", "text_files", type=click.Path(path_type=Path), multiple=True)
@click.option("--max-tokens", default=2048, show_default=True)
@click.option("--step-tokens", default=512, show_default=True, help="Tokens to decode, as in validate.")
@click.option("--greedy", default=64, show_default=True, help="Tokens to generate per prompt, as in validate.")
@click.option("--formats", default="f32,bf16,f16,i8,i4,nl4", show_default=True)
@click.option("--engines", is_flag=True, help="Compare with llama.cpp's formats instead.")
@click.option("--windows", default=16, show_default=True, help="With --engines: windows of each text.")
@click.option(
    "--window", default=512, show_default=True, type=click.IntRange(2), help="With --engines: tokens of a window."
)
@click.option(
    "--export",
    "exports",
    multiple=True,
    help="With --engines: NAME: OPTIONS of an export. Repeatable.  [default: i8, i4, and nl4, without --artifact]",
)
@click.option("--artifact", "artifacts", multiple=True, help="With --engines: NAME: PATH of an artifact. Repeatable.")
@click.option("--matmulnbits", is_flag=True, help="With --engines: also run the exports' weights in MatMulNBits.")
@click.option("--threads", default=1, show_default=True)
@click.option("--decode/--no-decode", default=True, show_default=True, help="Also time decode.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the results as JSON.")
def main(
    models: tuple[Path, ...],
    text_files: tuple[Path, ...],
    max_tokens: int,
    step_tokens: int,
    greedy: int,
    formats: str,
    engines: bool,
    windows: int,
    window: int,
    exports: tuple[str, ...],
    artifacts: tuple[str, ...],
    matmulnbits: bool,
    threads: int,
    decode: bool,
    output: Path | None,
) -> None:
    """Print the table for each of MODELS, model folders."""
    if engines:
        if not text_files:
            raise click.UsageError("--engines requires --text")
        from engine_accuracy import Candidates, compare_engines

        if not exports and not artifacts:
            exports = ("i8: --weights i8", "i4: --weights i4", "nl4: --weights nl4")
        found = [
            {"model": str(model), "rows": compare_engines(model, text_files, windows, window, candidates)}
            for candidates in [Candidates(exports, artifacts, matmulnbits, threads)]
            for model in models
        ]
        _write(output, found)
        return
    texts = [(file.name, read_text(file)) for file in text_files] or [(BUNDLED, default_text())]
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
                result = validate(model, path, options, texts=texts)
                seconds = time.perf_counter() - began
                speed = _decode(path, threads) if decode else None
            click.echo(_row(weights, result, seconds, speed))
            decode_figures = None if speed is None else {"tokens_per_second": speed[0], **asdict(speed[1])}
            rows.append({"model": str(model), "weights": weights, "decode": decode_figures, **result.to_dict()})
            passed &= result.passed
    _write(output, rows)
    sys.exit(0 if passed else 1)


def _write(output: Path | None, rows: object) -> None:
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _row(weights: str, result: Validation, seconds: float, speed: tuple[float, Ratio] | None) -> str:
    q = result.quality[1]
    runs = sum(s for stage, s in result.seconds.items() if stage.startswith(("PyTorch", "with")))
    mark = "" if result.passed else " FAILED"
    sparsity = result.sparsity.mean if result.sparsity is not None else 0.0
    rate, ratio = "-", "-"
    if speed is not None:
        rate, ratio = f"{speed[0]:.0f}", str(speed[1])
    return (
        f"| {weights}{mark} | {result.artifact['bytes'] / 1e6:.1f} | {q.perplexity:.3f} | {q.perplexity_increase:+.3%} "
        f"| {q.kl_mean:.1e} | {q.top1:.2%} | {sparsity:.2%} | {rate} | {ratio} | {seconds / runs:.2f} |"
    )


def _decode(path: Path, threads: int) -> tuple[float, Ratio]:
    """Return tokens/s with the library, and the time of the dense baseline over ours."""
    models = {
        name: replace(SparseModel.open(path, library=name == "sparse", threads=threads), stop=frozenset())
        for name in ("sparse", "dense")  # without stop tokens: a text may end before _STEPS tokens
    }

    def run(model: SparseModel) -> None:
        count = sum(1 for _ in model.stream([[5, 6, 7]], max_new_tokens=_STEPS))
        if count != _STEPS:
            raise RuntimeError(f"decode of {path}: expected {_STEPS} tokens, got {count}")

    times = in_turns({name: lambda m=model: run(m) for name, model in models.items()}, _ROUNDS)
    return _STEPS / statistics.median(times["sparse"]), paired_ratio(times["dense"], times["sparse"])


if __name__ == "__main__":
    main()
