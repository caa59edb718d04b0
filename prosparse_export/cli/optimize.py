"""``prosparse optimize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from prosparse_export.cli.accuracy_option import accuracy_level_option
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.format_choice import FormatChoice
from prosparse_export.cli.libraries_option import libraries_option

if TYPE_CHECKING:
    from graph_passes import FfnFormat
    from graph_passes.custom_ops import AccuracyLevel

__all__ = ["optimize_command"]

_EXAMPLES = """
Examples:
  prosparse optimize model.onnx out/optimized/model.onnx
  prosparse optimize model.onnx out/optimized/model.onnx --allow-dense    # list why no FFN can be rewritten
  prosparse optimize int4/model.onnx out/i4i8/model.onnx --weights i4i8   # keep MatMulNBits' 4-bit values
  prosparse optimize model.onnx out/decomposed/model.onnx --decomposed    # for OpenVINO and others
"""


@click.command(
    "optimize",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Rewrite the ReLU FFNs of any ONNX file.",
)
@click.argument("source", metavar="IN.onnx", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT.onnx", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--allow-dense", is_flag=True, help="Write the model even if no FFN can be rewritten.")
@click.option(
    "--weights",
    type=FormatChoice("source", ffn=True),
    default="source",
    show_default=True,
    help="Storage format of the sparse FFNs. source: the source's float type; FFNs with integer weights stay dense. "
    "i4i8: i4, with down_proj in i8, for 4-bit files (MatMulNBits). "
    "Formats other than source may round: the manifest records how much the outputs changed.",
)
@accuracy_level_option()
@click.option(
    "--decomposed",
    is_flag=True,
    help="Write our operators as standard ONNX nodes, which are dense: for OpenVINO and others.",
)
@libraries_option()
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Run both models on random inputs and compare their outputs; needs the memory to run them.",
)
@click.option("-v", "--verbose", is_flag=True, help="List rewritten FFNs too.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def optimize_command(
    source: Path,
    output: Path,
    overwrite: bool,
    allow_dense: bool,
    weights: str,
    accuracy_level: AccuracyLevel,
    decomposed: bool,
    libraries: str,
    check: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Rewrite the ReLU FFNs of IN.onnx, written by any exporter, into sparse operators.

    FFNs that stay dense are listed with their node and the reason. Inputs, outputs and all other nodes are kept.
    Weights are read one at a time, so the file may be larger than memory.
    """
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.optimize import OptimizeOptions, optimize_file

        chosen = None if weights == "source" else cast("FfnFormat", weights)
        options = OptimizeOptions(overwrite, allow_dense, libraries, chosen, decomposed, check, accuracy_level)
        result = optimize_file(source, output, options, progress)
    for outcome in result.rewritten if verbose else ():
        click.echo(f"{outcome.node}: {outcome.op} ({outcome.activation})", err=True)
    for outcome in result.not_rewritten:
        click.echo(f"{outcome.node}: {outcome.reason}", err=True)
    compared = result.manifest.output_check
    if compared is not None and not compared.outputs_compared:
        click.echo(f"outputs not compared: {compared.reason}", err=True)
    if chosen is not None and result.already and result.already_formats != (chosen,):
        click.echo(f"hint: sparse operators keep their format; for {chosen}, export the model again", err=True)
    if as_json:
        click.echo(json.dumps(result.manifest.to_dict(), indent=2))
        return
    already = ""
    if result.already:
        already = f"; kept {result.already} sparse operators of the source ({', '.join(result.already_formats)})"
    counts = f"{len(result.rewritten)} FFNs rewritten, {len(result.not_rewritten)} not rewritten"
    click.echo(f"{result.path}: {counts}{already}")
