"""``prosparse-lm-eval``: lm-evaluation-harness's command line, with exported models."""

from __future__ import annotations

import click

from prosparse_export.cli.extras import require_packages
from prosparse_export.errors import ProSparseError

__all__ = ["main"]


def main() -> None:
    """Run lm-evaluation-harness, or exit with code 1 if the extra [eval] is not installed."""
    try:
        require_packages("lm_eval", extra="eval")
    except ProSparseError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        raise SystemExit(1) from None
    from prosparse_export.lm_eval import main as run_harness

    run_harness()
