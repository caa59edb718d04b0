"""``prosparse optimize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.format_choice import FormatChoice

if TYPE_CHECKING:
    from graph_passes import FfnFormat

__all__ = ["optimize_command"]

_EXAMPLES = """
Examples:
  prosparse optimize model.onnx out/model.onnx
  prosparse optimize model.onnx out/model.onnx --allow-dense        # only list why nothing can be sparse
  prosparse optimize int4/model.onnx out/model.onnx --weights i4i8  # MatMulNBits: digits kept, down_proj rounded
  prosparse optimize model.onnx out/decomposed/model.onnx --decomposed    # for OpenVINO and others
"""


@click.command("optimize", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("source", metavar="IN.onnx", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT.onnx", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace files that are in the way.")
@click.option("--allow-dense", is_flag=True, help="Write the file even if no FFN can be sparse.")
@click.option(
    "--weights",
    type=FormatChoice("source", ffn=True),
    default="source",
    show_default=True,
    help="How the sparse FFNs' matrices are stored. source: in the float type that they have; integers are refused. "
    "i4i8: i4, down_proj in i8, for files in 4 bits (MatMulNBits). "
    "Everything else may round; the manifest says so, and by how much the outputs moved.",
)
@click.option(
    "--decomposed", is_flag=True, help="Write standard ONNX in place of our operators, for OpenVINO and others."
)
@click.option("--library/--no-library", default=True, show_default=True, help="Put the operator library beside it.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare outputs with the source's; takes the memory that running takes.",
)
@click.option("-v", "--verbose", is_flag=True, help="List the FFNs that were rewritten too.")
@click.option("-q", "--quiet", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON instead of a summary.")
def optimize_command(
    source: Path,
    output: Path,
    overwrite: bool,
    allow_dense: bool,
    weights: str,
    decomposed: bool,
    library: bool,
    check: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Rewrite the ReLU FFNs of IN.onnx, a file from any exporter, into sparse operators.

    Every FFN that stays dense is listed with its node and the reason. Inputs, outputs and all other nodes stay as
    they are. Weights are read one at a time, so that a file larger than memory will do.
    """
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.optimize.optimize import OptimizeOptions, optimize_file

        chosen = None if weights == "source" else cast("FfnFormat", weights)
        options = OptimizeOptions(overwrite, allow_dense, library, chosen, decomposed, check)
        result = optimize_file(source, output, options, progress)
    for outcome in result.rewritten if verbose else ():
        click.echo(f"{outcome.node}: {outcome.op} ({outcome.activation})", err=True)
    for outcome in result.refused:
        click.echo(f"{outcome.node}: {outcome.reason}", err=True)
    if not result.manifest["check"]["outputs_compared"]:
        click.echo(f"not compared: {result.manifest['check']['reason']}", err=True)
    if chosen is not None and result.already and result.already_formats != (chosen,):
        click.echo(f"hint: for {chosen} in operators of ours, export the model again with --weights {chosen}", err=True)
    if as_json:
        click.echo(json.dumps(result.manifest, indent=2))
        return
    already = ""
    if result.already:
        already = f"; {result.already} operators of ours were there before and stay {', '.join(result.already_formats)}"
    click.echo(f"{result.path}: {len(result.rewritten)} FFNs rewritten, {len(result.refused)} refused{already}")
