"""How every command behaves: errors of the user's as one line and a hint, no traceback."""

from __future__ import annotations

import click

from prosparse_export.cli.interruption import interruptible
from prosparse_export.errors import ProSparseError

__all__ = ["CONTEXT", "ProSparseCommand"]

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class ProSparseCommand(click.Command):
    """A command that turns a ``ProSparseError`` into ``error: ...`` and ``hint: ...``, exit 1.

    SIGTERM and SIGHUP unwind like Ctrl-C, so that staged files are removed.
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
        """Write the epilog as it is: it holds examples."""
        if self.epilog:
            formatter.write(f"\n{self.epilog.strip()}\n")
