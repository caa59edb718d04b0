"""Behavior of every command: user errors as one line and a hint, without a traceback."""

from __future__ import annotations

import click

from prosparse_export.cli.interruption import interruptible
from prosparse_export.errors import ProSparseError

__all__ = ["CONTEXT", "ProSparseCommand"]

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class ProSparseCommand(click.Command):
    """A command that prints a ``ProSparseError`` as ``error: ...`` and ``hint: ...`` and exits with code 1.

    SIGTERM and SIGHUP unwind the stack like Ctrl-C, so that staged files are removed.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            with interruptible():
                return super().invoke(ctx)
        except ProSparseError as error:
            click.echo(f"error: {error}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            ctx.exit(1)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog unwrapped: it contains examples."""
        if self.epilog:
            formatter.write(f"\n{self.epilog.strip()}\n")
