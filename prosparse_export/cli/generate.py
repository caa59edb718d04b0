"""``prosparse generate``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.sampling_options import sampling_options
from prosparse_export.errors import ProSparseError

__all__ = ["generate_command"]

_EXAMPLES = """
Examples:
  prosparse generate out/demo/demo.onnx "The city of Paris is"
  prosparse generate out/demo/demo.onnx "In 1905," -n 100 --temperature 0.7 --top-p 0.9 --seed 1
  prosparse generate out/demo/demo.onnx "In 1905," --stop "." --stop ";"
  prosparse generate out/7b/m.onnx "What is ReLU?" --chat
  prosparse generate out/demo/demo.onnx "In 1905," --no-library    # stock onnxruntime, without the sparse kernels
"""


@click.command(
    "generate",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Generate text with an exported model.",
)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of new tokens.",
)
@click.option("--chat", is_flag=True, help="Treat PROMPT as a user message and apply the chat template.")
@click.option("--stop", multiple=True, help="Stop at this text. Repeatable.")
@sampling_options
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per physical core]")
@click.option(
    "--spinning/--no-spinning", default=True, show_default=True, help="Let idle threads spin instead of sleeping."
)
@click.option("--library/--no-library", default=True, show_default=True, help="Register the operator library.")
@click.option(
    "--require-library",
    is_flag=True,
    help="Fail if the operator library cannot run, instead of running the dense function bodies.",
)
@click.option("--verify", is_flag=True, help="First check the files' SHA-256 against prosparse.json.")
def generate_command(
    onnx_file: Path,
    prompt: str,
    max_new_tokens: int,
    chat: bool,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    threads: int | None,
    spinning: bool,
    library: bool,
    require_library: bool,
    verify: bool,
) -> None:
    """Continue PROMPT with the exported model ONNX_FILE. Text goes to stdout, speed to stderr.

    For an encoder-decoder, PROMPT is the source text, and only the output is printed, as with --chat.
    """
    if require_library and not library:
        raise click.UsageError("--require-library cannot be combined with --no-library")
    if prompt.endswith(".onnx") and onnx_file.suffix != ".onnx" and Path(prompt).is_file():
        raise ProSparseError(
            f"model: {prompt}: expected the .onnx file before the prompt, got it after",
            hint="pass the .onnx file first, then the prompt",
        )
    from prosparse_export.artifact.chat_template import require_chat_template
    from prosparse_export.runtime.encoder_decoder import EncoderDecoder, encoder_path
    from prosparse_export.runtime.model import SparseModel
    from prosparse_export.runtime.operator_library import usable_library
    from prosparse_export.runtime.sampling import Sampling

    if library:
        problem = usable_library(onnx_file, required=require_library)
        library = problem is None
        if problem is not None:
            click.echo(f"{problem}; running the dense function bodies instead", err=True)
    kind = EncoderDecoder if encoder_path(onnx_file).is_file() else SparseModel
    sampling = Sampling(temperature, top_k, top_p, seed)
    if chat and kind is EncoderDecoder:
        raise ProSparseError(
            f"model: {onnx_file}: expected a decoder for --chat, got an encoder-decoder", hint="leave --chat out"
        )
    template = require_chat_template(onnx_file.parent) if chat else None
    model = kind.open(onnx_file, threads=threads, spinning=spinning, library=library, verify=verify)
    if isinstance(model, SparseModel):
        text = prompt if template is None else template.render([{"role": "user", "content": prompt}])
        pieces = model.stream_text(
            text, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, special_tokens=template is None
        )
        click.echo(prompt if template is None else "", nl=False)
    else:
        pieces = model.stream_text(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
    _print_pieces(pieces)


def _print_pieces(pieces: Iterator[str]) -> None:
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
