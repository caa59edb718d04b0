"""FFNs, sparse against dense, in one process: medians of paired ratios.

    python benchmarks/ffn.py --quick                                   # two minutes
    python benchmarks/ffn.py --shape llama-2-7b --sparsity 0.89 --tokens 1
    python benchmarks/ffn.py --quick --against OLD/libprosparse_ops.so # two builds of the operator library
    python benchmarks/ffn.py --linear                                  # Linear against MatMulNBits
    python benchmarks/ffn.py --repack                                  # seconds per GB at session creation
    python benchmarks/ffn.py --tokens 128 --accuracy-level 4           # integer formats with activations of 8 bits

Engines take turns, so whatever else the machine does meets all of them; every engine's weights exceed the caches.
Times are per layer and call of n tokens. GB/s counts the bytes that a call must read: in the sparse run the gate and
the active rows of up and down. The limit by bytes is 3 / (1 + 2a), without a gate 2 / (1 + a), with a = 1 - sparsity;
for i4i8, whose down_proj has more bytes, a little more.
"""

from __future__ import annotations

import datetime
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import help_text, in_turns, machine, paired_ratio
from engines.ffn_graphs import SHAPES, Run, Shape
from engines.ffn_onnxruntime import ort_dense, ort_linear
from engines.ffn_ours import FfnLayers, own_linear
from measurements import add_session

from graph_passes import FFN_FORMATS, is_quantized
from graph_passes.custom_ops import AccuracyLevel
from prosparse_export.cli.accuracy_option import accuracy_level_option

PEERS = {
    "f32": ("onnxruntime f32",),
    "f16": ("onnxruntime f32",),
    "bf16": ("onnxruntime f32",),
    "i8": ("onnxruntime q8", "llama.cpp Q8_0", "OpenVINO int8"),
    **dict.fromkeys(("i4", "nl4", "i4i8", "nl4i8"), ("onnxruntime q4", "llama.cpp Q4_0", "OpenVINO int4")),
}
_QUICK = {
    "shapes": ("tinyllama",),
    "weights": FFN_FORMATS,
    "sparsities": (0.0, 0.89),
    "token_counts": (1, 16),
    "threads": (2,),
    "rounds": 9,
    "peers": False,
}


def peer(name: str, shape: Shape, x: np.ndarray, threads: int) -> tuple[Run, int] | None:
    """Return another engine's call and its layers, or None if its package is not installed."""
    engine, kind = name.split()
    if engine == "onnxruntime":
        return ort_dense(shape, kind, x, threads)
    try:
        if engine == "llama.cpp":
            from engines.ffn_llama_cpp import llama_dense

            return llama_dense(shape, kind, x, threads)
        from engines.ffn_openvino import openvino_dense

        return openvino_dense(shape, int(kind[3:]), x, threads)
    except (ImportError, OSError) as error:
        click.echo(f"skipped: {name}: {error}", err=True)
        return None


def compare(
    layers: FfnLayers,
    sparsity: float,
    threads: int,
    rounds: int,
    others: dict[str, tuple[Run, int]],
    against: Path | None,
) -> list[dict[str, Any]]:
    """Run ours, our dense baseline, ``others`` and another build of the library in turns; print and return rows."""
    shape, n = layers.shape, len(layers.x)
    ours, measured = layers.session(sparsity, threads)
    runs = {"ours": (ours, layers.count)}
    runs["dense baseline"] = (layers.session(sparsity, threads, dense=True)[0], layers.count)
    if against is not None:
        for name, dense in (("ours, other library", False), ("dense, other library", True)):
            runs[name] = (layers.session(sparsity, threads, dense=dense, library=against)[0], layers.count)
    runs |= others
    times = in_turns({name: run for name, (run, _) in runs.items()}, rounds, warm_up=2)
    milliseconds = {name: [1e3 * t / runs[name][1] for t in own] for name, own in times.items()}
    cost = shape.cost(layers.weights, measured)
    rows = []
    for name, own in milliseconds.items():
        base = milliseconds["dense baseline" if name == "dense, other library" else "ours"]
        ratio = paired_ratio(own, base)
        middle = statistics.median(own)
        row = {
            "model": shape.name, "weights": layers.weights, "threads": threads, "tokens": n,
            "sparsity": round(measured, 3), "engine": name.split(" ")[0] if name in others else name,
            "milliseconds": round(middle, 3),
            "ratio": {"median": round(ratio.median, 3), "q1": round(ratio.low, 3), "q3": round(ratio.high, 3)},
        }  # fmt: skip
        if layers.level == 4:
            row["accuracy_level"] = 4
        note = f"{cost.sparse_bytes / 1e6 / middle:6.1f} GB/s" if name == "ours" else str(ratio)
        if name == "ours":
            row["gigabytes_per_second"] = round(cost.sparse_bytes / 1e6 / middle, 1)
        elif name == "dense baseline":
            row["limit"] = round(cost.speedup, 2)
            note += f"  limit by bytes {cost.speedup:.2f}"
        rows.append(row)
        click.echo(
            f"{shape.name:11}{layers.weights:>5} n={n:<4}{measured:6.1%} {threads}T  {name:21}{middle:9.3f} ms  {note}"
        )
    return rows


def sweep(
    shapes: tuple[str, ...],
    weights: tuple[str, ...],
    sparsities: tuple[float, ...],
    token_counts: tuple[int, ...],
    threads: tuple[int, ...],
    rounds: int,
    *,
    peers: bool,
    against: Path | None,
    accuracy_level: AccuracyLevel,
) -> list[dict[str, Any]]:
    """Compare every combination. Other engines run at 89%, with several tokens, and where one sparsity is given."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in (SHAPES[name] for name in shapes or SHAPES):
            for n in token_counts:
                x = np.random.default_rng(1).standard_normal((n, shape.d_model), np.float32)
                for kind in weights or FFN_FORMATS:
                    level: AccuracyLevel = accuracy_level if is_quantized(kind) else 0
                    layers = FfnLayers(shape, kind, x, Path(folder), level=level)
                    for count in threads:
                        names = PEERS[kind] if peers else ()
                        others = {name: run for name in names if (run := peer(name, shape, x, count)) is not None}
                        for sparsity in sparsities:
                            chosen = others if len(sparsities) == 1 or sparsity == 0.89 or n > 1 else {}
                            fewer = max(5, rounds // (1 + n // 16))
                            rows += compare(layers, sparsity, count, fewer, chosen, against)
    return rows


def linear(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Compare Linear with MatMulNBits at the 7B shape's projections."""
    rows = []
    for d_in, d_out in ((4096, 4096), (4096, 11008)):
        x = np.random.default_rng(1).standard_normal((1, d_in), np.float32)
        for weights, width in (("i8", 8), ("i4", 4), ("nl4", 4)):
            runs = {
                "ours": own_linear(d_in, d_out, weights, x, threads),
                "onnxruntime": ort_linear(d_in, d_out, width, x, threads),
            }
            times = in_turns({name: run for name, (run, _) in runs.items()}, rounds, warm_up=2)
            per_layer = {name: [1e3 * t / runs[name][1] for t in own] for name, own in times.items()}
            for name, own in per_layer.items():
                ratio, middle = paired_ratio(own, per_layer["ours"]), statistics.median(own)
                click.echo(f"Linear {weights} {d_in}x{d_out} n=1 {threads}T  {name:12}{middle:8.3f} ms  {ratio}")
                rows.append(
                    {
                        "model": f"{d_in}x{d_out}", "weights": weights, "threads": threads, "tokens": 1,
                        "sparsity": 0.0, "engine": name, "milliseconds": round(middle, 3),
                        "ratio": {"median": round(ratio.median, 2)},
                    }
                )  # fmt: skip
    return rows


def repack(weights: tuple[str, ...], threads: tuple[int, ...], rounds: int) -> None:
    """Time session creation on a cached file: the library repacks with as many threads as there are processors."""
    shape, processors = SHAPES["llama-2-7b"], sorted(os.sched_getaffinity(0))
    x = np.random.default_rng(1).standard_normal((1, shape.d_model), np.float32)

    def seconds(layers: FfnLayers, count: int) -> float:
        os.sched_setaffinity(0, processors[:count])
        try:
            start = time.perf_counter()
            layers.session(0.89, count)
            return time.perf_counter() - start
        finally:
            os.sched_setaffinity(0, processors)

    for kind in weights or FFN_FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            layers = FfnLayers(shape, kind, x, Path(folder), working_set=10**9)
            stored = layers.count * shape.cost(kind).dense_bytes / 1e9
            seconds(layers, max(threads))  # warm-up: from here on the file is in the page cache
            times = {count: [seconds(layers, count) / stored for _ in range(rounds)] for count in threads}
            for count, own in times.items():
                click.echo(
                    f"{kind:>5} {count}T: {statistics.median(own):.2f} s per GB"
                    f" [{min(own):.2f}, {max(own):.2f}], {stored:.2f} GB"
                )


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="[default: all]")
@click.option("--weights", type=click.Choice(FFN_FORMATS), multiple=True, help="[default: all]")
@click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=(0, 0.5, 0.67, 0.8, 0.89, 0.95, 0.99),
    help="Activation sparsity, 0 to 1.",
)
@click.option("--tokens", "token_counts", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8, 16, 32, 128))
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True)
@click.option("--peers/--no-peers", default=True, help="Time other engines too.")
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Another build of the operator library.")
@accuracy_level_option()
@click.option("--linear", "only_linear", is_flag=True, help="Only time Linear against MatMulNBits.")
@click.option("--repack", "only_repack", is_flag=True, help="Only time repacking, in seconds per GB.")
@click.option("--quick", is_flag=True, help="TinyLlama's shape, all formats, 0 and 89%, 1 and 16 tokens, 2 threads.")
@click.option("--record", metavar="MACHINE", help="Put the results into benchmarks/results/MACHINE.json.")
def main(**options: Any) -> None:
    """Parse, measure, record."""
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    record, quick = options.pop("record"), options.pop("quick")
    suite = "linear" if options.pop("only_linear") else "ffn"
    if options.pop("only_repack"):
        repack(options["weights"], options["threads"], options["rounds"])
        return
    if suite == "linear":
        rows = [row for count in options["threads"] for row in linear(count, options["rounds"])]
    else:
        rows = sweep(**(options | (_QUICK if quick else {})))
    if record is not None:
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--record", record)]
        command, today = shlex.join(["python", "benchmarks/ffn.py", *arguments]), datetime.date.today().isoformat()
        add_session(record, {"suite": suite, "command": command, "date": today, "runs": rows})


if __name__ == "__main__":
    main()
