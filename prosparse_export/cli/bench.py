"""``prosparse bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.bench_serve import bench_serving, check_serving_options, serving_options
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.output_paths import check_outputs
from prosparse_export.errors import ProSparseError

__all__ = ["bench_command"]

_PLOTS = (".png", ".svg", ".pdf")
_EXAMPLES = """
Examples:
  prosparse bench out/demo/demo.onnx
  prosparse bench out/7b/m.onnx --threads 2 --prefill 128 --prefill 512 --rounds 15
  prosparse bench out/7b/m.onnx --no-dense --json --plot chart.png > numbers.json
  prosparse bench out/7b/m.onnx --serve --clients 1 --clients 8 --prompt 256 --answer 64 --plot load.png
"""


@click.command(
    "bench",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Time decode and prefill against the dense baseline.",
)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per physical core]")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens in the KV cache before decode.",
)
@click.option("--tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens to decode per round.")
@click.option(
    "--prefill",
    type=click.IntRange(min=1),
    multiple=True,
    default=(16, 128, 512),
    show_default=True,
    help="Prompt length in tokens. Repeatable.",
)
@click.option("--rounds", type=click.IntRange(min=3), default=9, show_default=True, help="Rounds to time.")
@click.option(
    "--dense/--no-dense",
    default=True,
    show_default=True,
    help="Run the dense baseline; needs memory for a second copy of the weights.",
)
@click.option("--text", "text_file", type=click.Path(path_type=Path), help="Plain text, UTF-8.  [default: bundled]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a chart: PNG, SVG or PDF.")
@click.option("--overwrite", is_flag=True, help="Replace an existing chart.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@serving_options
def bench_command(
    onnx_file: Path,
    threads: int | None,
    context: int,
    tokens: int,
    prefill: tuple[int, ...],
    rounds: int,
    dense: bool,
    text_file: Path | None,
    as_json: bool,
    plot_file: Path | None,
    overwrite: bool,
    quiet: bool,
    serve: bool,
    **load: Any,
) -> None:
    """Time decode and prefill of the exported model ONNX_FILE, sparse against dense, in one process.

    The dense baseline runs the same file and kernels but computes every neuron; the two
    alternate. A speedup is the median over rounds of dense time over sparse time, so it may differ
    from the ratio of the medians. Without a tokenizer next to the model, the input is random tokens.

    With --serve, benchmark a server: generated tokens per second, time to first token (TTFT), and inter-token latency
    (ITL), by number of clients (closed loop) and by request rate (open loop).
    """
    check_serving_options(serve, own=load, others=("context", "tokens", "prefill", "rounds", "dense"))
    check_outputs((plot_file,), overwrite=overwrite)
    if plot_file is not None and plot_file.suffix.lower() not in _PLOTS:
        raise ProSparseError(
            f"plot: {plot_file}: expected a file name ending in {', '.join(_PLOTS)}",
            hint=f"for example {plot_file.with_suffix('.png')}",
        )
    if serve:
        return bench_serving(onnx_file, text_file, threads, plot_file, as_json=as_json, quiet=quiet, **load)
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        import numpy as np

        from prosparse_export.artifact.model_settings import read_tokenizer
        from prosparse_export.bench import BenchOptions, bench
        from prosparse_export.bench.render import as_text, plot
        from prosparse_export.text import default_text, read_text

        text = default_text() if text_file is None else read_text(text_file)
        tokenizer = read_tokenizer(onnx_file.parent)
        if tokenizer is None:
            ids = np.random.default_rng(0).integers(3, 1000, 4096)
        else:
            ids = np.asarray(tokenizer.encode(text).ids, np.int64)
        options = BenchOptions(threads, context, tokens, prefill, rounds, dense)
        result = bench(onnx_file, ids, options, progress)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))
    if plot_file is not None:
        plot(result, plot_file)
