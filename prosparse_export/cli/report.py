"""``prosparse report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.output_paths import check_outputs
from prosparse_export.errors import ProSparseError

__all__ = ["report_command"]

_EXAMPLES = """
Examples:
  prosparse report out/demo/demo.onnx                           # writes out/demo/demo.report.html
  prosparse report out/demo/demo.onnx -o page.html --png charts/
  prosparse report out/demo/demo.onnx --json > numbers.json
  prosparse report out/7b/m.onnx --text code.txt --text prose.txt --max-tokens 20000
"""


@click.command(
    "report",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Write an HTML report on activation sparsity.",
)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="HTML page.  [default: next to ONNX_FILE]")
@click.option(
    "--text",
    "text_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Plain text, UTF-8. Repeatable.  [default: bundled]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=16),
    default=4096,
    show_default=True,
    help="Maximum tokens of text.",
)
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens per window.")
@click.option(
    "--speed/--no-speed",
    default=True,
    show_default=True,
    help="Time each FFN against its function body; requires the operator library.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads for timing.")
@click.option(
    "--png", "png_folder", type=click.Path(path_type=Path), help="Also write the charts as PNG files into this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
def report_command(
    onnx_file: Path,
    output: Path | None,
    text_files: tuple[Path, ...],
    max_tokens: int,
    context: int,
    speed: bool,
    threads: int,
    png_folder: Path | None,
    as_json: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write an HTML report on the activation sparsity of the exported model ONNX_FILE.

    The page shows active neurons by layer, token, position and text, how often each neuron is
    active, and the speed of each layer. It is one file without external resources. Requires
    the extra [report].
    """
    page = output or onnx_file.with_suffix(".report.html")
    check_outputs((page,), overwrite=overwrite)
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.report import ReportOptions, measure, png_paths, write_page, write_pngs
        from prosparse_export.text import BUNDLED, default_text, read_text

        if png_folder is not None and png_folder.is_dir():
            check_outputs(png_paths(png_folder), overwrite=overwrite)
        texts = [(path.name, read_text(path)) for path in text_files] or [(BUNDLED, default_text())]
        result = measure(onnx_file, texts, ReportOptions(max_tokens, context, speed, threads), progress)
        progress("write", 0, 0)
        write_page(result, page)
        if png_folder is not None:
            _folder(png_folder)
            write_pngs(result, png_folder)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    click.echo(str(page), err=as_json)


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProSparseError(
            f"output: {path}: cannot create this folder: {error.strerror}", hint="choose another folder"
        ) from error
