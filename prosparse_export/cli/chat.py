"""``prosparse chat``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.sampling_options import sampling_options

if TYPE_CHECKING:
    from prosparse_export.runtime.chat import Chat

__all__ = ["chat_command"]

_EXAMPLES = """
Examples:
  prosparse chat out/7b/m.onnx
  prosparse chat out/7b/m.onnx --system "Answer in one sentence." --temperature 0.7 --seed 1
"""
_HELP = "/reset clears the conversation, /exit or Ctrl-D quits, Ctrl-C stops a reply"


@click.command(
    "chat",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Talk to a model in the terminal.",
)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--system", help="System message that begins the conversation.")
@click.option(
    "-n", "--max-new-tokens", type=click.IntRange(min=1), help="Maximum tokens per reply.  [default: as many as fit]"
)
@sampling_options
@click.option("--chat-template", type=click.Path(path_type=Path), help="Jinja template to use instead of the model's.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per physical core]")
def chat_command(
    onnx_file: Path,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    chat_template: Path | None,
    threads: int | None,
) -> None:
    """Talk to the exported model ONNX_FILE, which needs a chat template.

    The whole conversation is sent with each message. /reset clears it, /exit or Ctrl-D quits, Ctrl-C stops a reply.
    """
    from prosparse_export.artifact.chat_template import require_chat_template
    from prosparse_export.artifact.integrity import check_model_path
    from prosparse_export.runtime.chat import Chat
    from prosparse_export.runtime.model import SparseModel
    from prosparse_export.runtime.sampling import Sampling

    check_model_path(onnx_file)
    template = require_chat_template(onnx_file.parent, chat_template)
    model = SparseModel.open(onnx_file, threads=threads)
    chat = Chat(model, template, Sampling(temperature, top_k, top_p, seed), max_new_tokens, system)
    click.echo(_HELP, err=True)
    while (line := _read_line()) is not None:
        if line == "/reset":
            chat.reset()
            click.echo("conversation cleared", err=True)
        elif line.startswith("/"):
            click.echo(_HELP, err=True)
        elif line:
            _reply(chat, line)


def _read_line() -> str | None:
    """Return the next line of the user, or None at the end."""
    try:
        line = str(click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True)).strip()
    except click.Abort:  # Ctrl-D, or Ctrl-C on an empty line
        click.echo(err=True)
        return None
    return None if line == "/exit" else line


def _reply(chat: Chat, line: str) -> None:
    began, count = time.perf_counter(), 0
    pieces: Iterator[str] = chat.reply(line)
    try:
        for piece in pieces:
            count += 1
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        click.echo(" ...", nl=False)
    seconds = time.perf_counter() - began
    click.echo()
    click.echo(f"[{count} tokens, {count / seconds:.1f}/s; {chat.tokens} in the conversation]", err=True)
