"""``prosparse report``."""

from __future__ import annotations

from pathlib import Path

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.outputs import check_outputs
from prosparse_export.errors import ProSparseError

__all__ = ["report_command"]

_EXAMPLES = """
Examples:
  prosparse report out/demo.onnx                                # writes out/demo.report.html
  prosparse report out/demo.onnx -o page.html --png charts/ --json numbers.json
  prosparse report out/7b/m.onnx --text code.txt --text prose.txt --max-tokens 20000
"""


@click.command("report", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page.  [default: beside ONNX_FILE]")
@click.option("--text", "text_files", type=click.Path(path_type=Path), multiple=True, help="Text, UTF-8. Repeatable.")
@click.option(
    "--max-tokens", "--tokens", type=click.IntRange(min=16), default=4096, show_default=True, help="Tokens of text."
)
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens per window.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Time every layer, sparse against dense.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For the timed runs.")
@click.option("--png", "png_folder", type=click.Path(path_type=Path), help="Also write the charts into this folder.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the numbers into this file.")
@click.option("--overwrite", is_flag=True, help="Replace files that are in the way.")
@click.option("-q", "--quiet", is_flag=True, help="No progress display.")
def report_command(
    onnx_file: Path,
    output: Path | None,
    text_files: tuple[Path, ...],
    max_tokens: int,
    context: int,
    speed: bool,
    threads: int,
    png_folder: Path | None,
    json_file: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Show which neurons the exported model ONNX_FILE uses: one HTML page that needs nothing else.

    Sparsity by layer, token, position and text, how busy neurons are, how many are kept from token to token, and
    speed by layer. Needs the extra packages of prosparse-export[report].
    """
    page = output or onnx_file.with_suffix(".report.html")
    check_outputs((page, json_file), overwrite=overwrite)
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.report import ReportOptions, measure, png_paths, write_json, write_page, write_pngs
        from prosparse_export.text import BUNDLED, default_text, read_text

        if png_folder is not None and png_folder.is_dir():
            check_outputs(png_paths(png_folder), overwrite=overwrite)  # each that any report may write
        texts = [(path.name, read_text(path)) for path in text_files] or [(BUNDLED, default_text())]
        result = measure(onnx_file, texts, ReportOptions(max_tokens, context, speed, threads), progress)
        progress("write", 0, 0)
        write_page(result, page)
        if json_file is not None:
            write_json(result, json_file)
        if png_folder is not None:
            _folder(png_folder)
            write_pngs(result, png_folder)
    click.echo(str(page))


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProSparseError(
            f"output: {path}: cannot make this folder: {error.strerror}", hint="choose another folder"
        ) from error
