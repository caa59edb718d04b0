"""Feed-forward blocks, sparse against dense, in one process: medians of paired ratios.

Engines take turns, so that what the machine does meanwhile meets all of them; every engine's weights exceed the
caches. Times are per layer and call of n tokens. GB/s counts the bytes that a call has to read: of the sparse
run the gate and the active share of up and down. The ceiling is 3 / (1 + 2a), without a gate 2 / (1 + a), where
a = 1 - sparsity; of i4i8, whose down_proj has more bytes, a little more.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from ffn_models import Blocks, Run, Shape, ort_dense, ort_linear, own_linear

from graph_passes import FFN_FORMATS
from prosparse_export.runtime.operator_library import library_info

SHAPES = {
    "llama-2-7b": Shape("llama-2-7b", 4096, 11008),
    "tinyllama": Shape("tinyllama", 2048, 5632),
    "opt-6.7b": Shape("opt-6.7b", 4096, 16384, gated=False),
    "smollm2": Shape("smollm2", 576, 1536),
}
BASELINES = {
    "f32": ("ort f32",),
    "f16": ("ort f32",),
    "bf16": ("ort f32",),
    "i8": ("ort q8", "llama Q8_0", "openvino int8"),
    "i4": ("ort q4", "llama Q4_0", "openvino int4"),
    "i4i8": ("ort q4", "llama Q4_0", "openvino int4"),
}


@dataclass(frozen=True)
class Row:
    """One comparison: ours sparse against one engine."""

    shape: str
    weights: str
    tokens: int
    sparsity: float
    threads: int
    against: str
    ours_ms: float
    ours_gb_s: float
    other_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ceiling: float | None


def baseline(name: str, shape: Shape, x: np.ndarray, threads: int) -> tuple[Run, int] | None:
    """Return the engine's call and its layers, or None if its package is not here."""
    engine, kind = name.split()
    if engine == "ort":
        return ort_dense(shape, kind, x, threads)
    try:
        if engine == "llama":
            from engines.ffn_llama_cpp import llama_dense

            return llama_dense(shape, kind, x, threads)
        from engines.ffn_openvino import openvino_dense

        return openvino_dense(shape, int(kind[3:]), x, threads)
    except (ImportError, OSError) as error:
        click.echo(f"left out: {name}: {error}", err=True)
        return None


def interleave(runs: dict[str, tuple[Run, int]], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds per layer of each engine, by round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run, _ in runs.values():
        run()  # warm
        run()
    for _ in range(rounds):
        for name, (run, layers) in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3 / layers)
    return times


def compare(
    blocks: Blocks, sparsity: float, threads: int, rounds: int, others: dict[str, tuple[Run, int]]
) -> list[Row]:
    """Run ours, our dense run and ``others`` in turns."""
    shape = blocks.shape
    ours, measured = blocks.session(sparsity, threads)
    dense, _ = blocks.session(sparsity, threads, dense=True)
    times = interleave({"ours": (ours, blocks.count), "own dense": (dense, blocks.count), **others}, rounds)
    cost = shape.cost(blocks.weights, measured)
    rows = []
    for name in ("own dense", *others):
        ratios = sorted(other / own for other, own in zip(times[name], times["ours"], strict=True))
        median = statistics.median(times["ours"])
        rows.append(
            Row(
                shape.name,
                blocks.weights,
                len(blocks.x),
                round(measured, 4),
                threads,
                name,
                median,
                cost.sparse_bytes / 1e6 / median,
                statistics.median(times[name]),
                statistics.median(ratios),
                ratios[len(ratios) // 4],
                ratios[-1 - len(ratios) // 4],
                cost.speedup if name == "own dense" else None,
            )
        )
    return rows


def show(row: Row) -> None:
    """Print one line."""
    ceiling = f"  ceiling {row.ceiling:.2f}" if row.ceiling else ""
    click.echo(
        f"{row.shape:11}{row.weights:>5} n={row.tokens:<4}{row.sparsity:6.1%} {row.threads}T {row.ours_ms:9.3f} ms"
        f" {row.ours_gb_s:6.1f} GB/s  {row.against:14}{row.other_ms:9.3f} ms  x{row.ratio:5.2f}"
        f" [{row.ratio_low:.2f}, {row.ratio_high:.2f}]{ceiling}"
    )


def linear_rows(threads: int, rounds: int) -> list[str]:
    """Compare our dense product with MatMulNBits at the 7B shape's projections."""
    lines = []
    for d_in, d_out in ((4096, 4096), (4096, 11008)):
        x = np.random.default_rng(1).standard_normal((1, d_in), np.float32)
        for weights, width in (("i8", 8), ("i4", 4)):
            runs = {
                "ours": own_linear(d_in, d_out, weights, x, threads),
                "ort": ort_linear(d_in, d_out, width, x, threads),
            }
            times = interleave(runs, rounds)
            ratio = statistics.median(b / a for a, b in zip(times["ours"], times["ort"], strict=True))
            ours, ort = statistics.median(times["ours"]), statistics.median(times["ort"])
            lines.append(
                f"Linear {weights} {d_in}x{d_out} n=1 {threads}T: {ours:.3f} ms,"
                f" MatMulNBits-{width} {ort:.3f} ms, x{ratio:.2f}"
            )
    return lines


def plot(rows: list[Row], path: Path) -> None:
    """Draw the speedup over our dense run by sparsity, one line a format, beside the ceiling."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [row for row in rows if row.against == "own dense" and row.tokens == 1]
    shapes = sorted({row.shape for row in chosen})
    figure, axes = plt.subplots(
        1, max(1, len(shapes)), figsize=(5 * max(1, len(shapes)), 4), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes[0][: len(shapes)], shapes, strict=True):
        for marker, weights in zip("osDv^P", FFN_FORMATS, strict=True):
            points = sorted(
                (r.sparsity * 100, r.ratio, r.ceiling) for r in chosen if r.shape == shape and r.weights == weights
            )
            if points:
                axis.plot([p[0] for p in points], [p[1] for p in points], marker=marker, label=weights)
        ceiling = sorted({(r.sparsity * 100, r.ceiling) for r in chosen if r.shape == shape and r.weights != "i4i8"})
        axis.plot([c[0] for c in ceiling], [c[1] for c in ceiling], "k--", label="bytes alone")
        axis.set(title=shape, xlabel="sparsity (%)", ylabel="times our dense run")
        axis.legend()
    figure.savefig(path, dpi=120)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="[default: all]")
@click.option("--weights", type=click.Choice(FFN_FORMATS), multiple=True, help="[default: all]")
@click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=(0, 0.5, 0.67, 0.8, 0.89, 0.95, 0.99),
    help="Share of zeros, 0 to 1.",
)
@click.option("--tokens", "token_counts", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8, 16, 32, 128))
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=int, default=15, show_default=True)
@click.option(
    "--baselines/--no-baselines", default=True, help="Other engines, at 89 % and where --sparsity names one value."
)
@click.option("--linear", is_flag=True, help="Our dense product against MatMulNBits, and nothing else.")
@click.option("--quick", is_flag=True, help="TinyLlama's shape, f32, i8 and i4, 0 and 89 %, n = 1 and 16: two minutes.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out/benchmarks"),
    show_default=True,
    help="Folder for ffn.csv, ffn.png.",
)
def main(shapes, weights, sparsities, token_counts, threads, rounds, baselines, linear, quick, output) -> None:
    """Measure our operators against their own dense run and other engines."""
    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            "",
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    click.echo(f"{model}, {os.cpu_count()} cores, ISA {library_info().isa_used}")
    if linear:
        for count in threads:
            for line in linear_rows(count, rounds):
                click.echo(line)
        return
    if quick:
        shapes, weights, sparsities, token_counts, threads, rounds = (
            ("tinyllama",),
            ("f32", "i8", "i4"),
            (0, 0.89),
            (1, 16),
            (2,),
            7,
        )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in (SHAPES[name] for name in shapes or SHAPES):
            for n in token_counts:
                x = np.random.default_rng(1).standard_normal((n, shape.d_model), np.float32)
                for kind in weights or FFN_FORMATS:
                    blocks = Blocks(shape, kind, x, Path(folder))
                    for count in threads:
                        names = BASELINES[kind] if baselines else ()
                        others = {name: run for name in names if (run := baseline(name, shape, x, count)) is not None}
                        for sparsity in sparsities:
                            chosen = others if len(sparsities) == 1 or sparsity == 0.89 or n > 1 else {}
                            for row in compare(blocks, sparsity, count, max(5, rounds // (1 + n // 16)), chosen):
                                show(row)
                                rows.append(row)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "ffn.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    try:
        plot(rows, output / "ffn.png")
    except ImportError:
        click.echo("no plot: matplotlib is not installed", err=True)
    click.echo(f"written: {output / 'ffn.csv'}, {output / 'ffn.png'}")


if __name__ == "__main__":
    main()
