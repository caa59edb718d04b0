"""``prosparse validate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.errors import ProSparseError

__all__ = ["validate_command"]

_EXAMPLES = """
Examples:
  prosparse validate models/demo out/demo.onnx
  prosparse validate MODEL_DIR out/7b.onnx --tokens 256 --step-tokens 32 --text mine.txt
  prosparse validate models/demo out/demo.onnx --json > report.json   # exit 1 if beyond the bound
"""


@click.command("validate", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--text", "text_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Text, UTF-8.")
@click.option("--tokens", type=click.IntRange(min=8), default=2048, show_default=True, help="Tokens of text.")
@click.option("--context", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens per window.")
@click.option("--step-tokens", type=click.IntRange(min=1), help="Tokens computed one by one.  [default: all]")
@click.option("--greedy", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens generated.")
@click.option("--max-abs-diff", type=float, help="Bound on a logit's difference.  [default: by weight format]")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per core]")
@click.option("--trust-remote-code", is_flag=True, help="Let Python code in MODEL_DIR run. Read it first.")
@click.option("-q", "--quiet", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate_command(
    model_dir: Path,
    onnx_file: Path,
    text_file: Path | None,
    tokens: int,
    context: int,
    step_tokens: int | None,
    greedy: int,
    max_abs_diff: float | None,
    threads: int | None,
    trust_remote_code: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare ONNX_FILE, with and without the sparse kernels, with PyTorch on MODEL_DIR; exit 1 if they differ.

    Logits of real text (bundled, or yours), in one go and token by token and as a left-padded batch,
    and greedy generation. Two tokens whose logits are nearer than twice the bound count as a tie.
    """
    with stages(quiet=quiet) as report:
        report("start", 0, 0)
        from prosparse_export.validation import ValidationOptions, validate  # torch takes seconds to import

        options = ValidationOptions(tokens, min(context, tokens), max_abs_diff, greedy, step_tokens, threads)
        text = _read_text(text_file) if text_file else None
        result = validate(model_dir, onnx_file, options, text=text, trust_remote_code=trust_remote_code, report=report)
    if as_json:
        values = {
            "passed": result.passed,
            "bound": result.max_abs_diff,
            "comparisons": [asdict(c) for c in result.comparisons],
        }
        click.echo(json.dumps(values, indent=2))
    else:
        click.echo(f"{'run':40}{'tokens':>7}{'max |diff|':>12}{'top-1 differs':>15}{'ties':>6}{'greedy same':>14}")
        for c in result.comparisons:
            same = f"{c.greedy_tokens - c.greedy_differs} of {c.greedy_tokens}" if c.greedy_tokens else "-"
            numbers = f"{c.tokens:7}{c.max_abs_diff:12.2e}{c.top1_differs:15}{c.ties:6}{same:>14}"
            click.echo(f"{c.name:40}{numbers}{'' if c.passed else '  FAILED'}")
        verdict = "passed" if result.passed else "FAILED"
        click.echo(f"{verdict}: bound {result.max_abs_diff:g} on logits, top-1 and greedy tokens the same, ties apart")
    if not result.passed:
        raise SystemExit(1)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProSparseError(f"text: {path}: expected UTF-8 text, got {error}", hint="convert it to UTF-8") from error
