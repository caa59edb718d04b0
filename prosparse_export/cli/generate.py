"""``prosparse generate``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand

__all__ = ["generate_command"]

_EXAMPLES = """
Examples:
  prosparse generate out/demo.onnx "The city of Paris is"
  prosparse generate out/demo.onnx "In 1905," -n 100 --temperature 0.7 --top-p 0.9 --seed 1
  prosparse generate out/demo.onnx "In 1905," --stop "." --stop ";"
  prosparse generate out/demo.onnx "In 1905," --no-library    # stock onnxruntime, same tokens
"""


@click.command("generate", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("-n", "--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--stop", multiple=True, help="Text that ends it, besides the model's own end. Repeatable.")
@click.option("--temperature", type=click.FloatRange(min=0.0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 is all tokens.")
@click.option("--top-p", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), help="For sampling.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per core]")
@click.option("--spinning/--no-spinning", default=True, show_default=True, help="Threads wait awake between operators.")
@click.option("--library/--no-library", default=True, show_default=True, help="Run the sparse kernels.")
@click.option("--verify", is_flag=True, help="First compare the files' SHA-256 with prosparse.json.")
def generate_command(
    onnx_file: Path,
    prompt: str,
    max_new_tokens: int,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    threads: int | None,
    spinning: bool,
    library: bool,
    verify: bool,
) -> None:
    """Continue PROMPT with the exported model ONNX_FILE, token by token; speed goes to stderr.

    An encoder-decoder reads PROMPT and prints what it makes of it.
    """
    from prosparse_export.runtime.encoder_decoder import EncoderDecoder, encoder_path
    from prosparse_export.runtime.model import SparseModel

    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": stop,
        "seed": seed,
    }
    pieces: Iterator[str]
    if encoder_path(onnx_file).is_file():
        pair = EncoderDecoder.open(onnx_file, threads=threads, spinning=spinning, library=library, verify=verify)
        pieces = pair.stream_text(prompt, **sampling)
    else:
        model = SparseModel.open(onnx_file, threads=threads, spinning=spinning, library=library, verify=verify)
        pieces = model.stream_text(prompt, **sampling)
        click.echo(prompt, nl=False)
    began, first, count = time.perf_counter(), 0.0, 0
    for piece in pieces:
        count += 1
        if count == 1:
            first = time.perf_counter()
        click.echo(piece, nl=False)
    click.echo()
    if count > 1:
        rate = (count - 1) / (time.perf_counter() - first)
        click.echo(f"first token {1000 * (first - began):.1f} ms, then {rate:.1f} tokens/s", err=True)
