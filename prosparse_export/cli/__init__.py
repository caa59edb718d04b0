"""The command line: ``prosparse COMMAND`` and ``prosparse-export``."""

from __future__ import annotations

import click

from prosparse_export import __version__
from prosparse_export.cli.bench import bench_command
from prosparse_export.cli.calibrate import calibrate_command
from prosparse_export.cli.chat import chat_command
from prosparse_export.cli.command import CONTEXT
from prosparse_export.cli.export import export_command
from prosparse_export.cli.generate import generate_command
from prosparse_export.cli.info import info_command
from prosparse_export.cli.optimize import optimize_command
from prosparse_export.cli.report import report_command
from prosparse_export.cli.serve import serve_command
from prosparse_export.cli.sparsify import sparsify_command
from prosparse_export.cli.validate import validate_command

__all__ = ["export_command", "main"]


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="prosparse-export")
def main() -> None:
    """Train activation-sparse transformers, export them to ONNX, validate them, and run them on CPUs."""


for _command in (
    sparsify_command,
    calibrate_command,
    export_command,
    optimize_command,
    validate_command,
    report_command,
    bench_command,
    generate_command,
    chat_command,
    serve_command,
    info_command,
):
    main.add_command(_command)
