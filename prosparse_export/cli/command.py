"""Behavior of every command: user errors as one line and a hint, without a traceback."""

from __future__ import annotations

from typing import Any

import click

from prosparse_export.cli.interruption import interruptible
from prosparse_export.collection import no_collection_at_exit
from prosparse_export.errors import ProSparseError

__all__ = ["CONTEXT", "ProSparseCommand"]

_TRAINS = ("torch", "transformers", "optimum", "safetensors", "huggingface_hub")
_LEFT_OUT = (*_TRAINS, "onnx", "onnx_ir", "onnxscript", "ml_dtypes")  # by packaging/wheels.py, of prosparse-runtime
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class ProSparseCommand(click.Command):
    """A command that prints a ``ProSparseError`` as ``error: ...`` and ``hint: ...`` and exits with code 1.

    SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that staged files are removed.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        no_collection_at_exit()
        try:
            with interruptible():
                return super().invoke(ctx)
        except ProSparseError as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            ctx.exit(1)
        except ModuleNotFoundError as error:
            _explain(error, ctx.command_path)
            ctx.exit(1)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments: the choices of an option may come from a package that is not installed."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except ModuleNotFoundError as error:
            _explain(error, f"{parent.command_path} {info_name}" if parent else str(info_name))
            raise click.exceptions.Exit(1) from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog unwrapped: it contains examples."""
        if self.epilog:
            formatter.write(f"\n{self.epilog.strip()}\n")


def _explain(error: ModuleNotFoundError, command: str) -> None:
    """Print which package a command lacks; raise ``error`` again if it is not one that an installation may lack."""
    if error.name not in _LEFT_OUT:
        raise error
    extra = "prosparse-export" if error.name in _TRAINS else "'prosparse-runtime[bench]', or prosparse-export"
    click.echo(f"error: {command}: required package is not installed: {error.name}", err=True)
    click.echo(f"hint: prosparse-runtime runs artifacts only; install {extra}", err=True)
