"""``prosparse validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prosparse_export.atomic_write import atomic_write
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.limit_options import LimitOptions, limit_options
from prosparse_export.cli.output_paths import check_outputs

if TYPE_CHECKING:
    from prosparse_export.validation import Validation

__all__ = ["tokens_by_default", "validate_command"]

_EXAMPLES = """
Examples:
  prosparse validate models/demo out/demo/demo.onnx
  prosparse validate MODEL_DIR out/7b/m.onnx --text mine.txt --text other.txt --max-tokens 100000
  prosparse validate models/demo out/demo/demo.onnx --max-ppl-increase 0.5% --min-top1 99.5% --min-sparsity 80%
  prosparse validate models/demo out/demo/demo.onnx --limits limits.toml --junit report.xml --markdown summary.md
  prosparse validate models/demo out/demo/demo.onnx --json > report.json   # exit code 1 if a check fails
  prosparse validate MODEL_DIR out/7b/m.onnx --save-reference 7b.ref   # once, on a machine with enough memory
  prosparse validate MODEL_DIR out/7b-i4/m.onnx --reference 7b.ref     # then without running PyTorch

Options override limits from a TOML file; docs/guides/validate.md has an example.
"""


@click.command(
    "validate",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Compare an exported model with PyTorch.",
)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "text_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Plain text, UTF-8. Repeatable.  [default: bundled]",
)
@click.option(
    "--max-tokens",
    "tokens",
    type=click.IntRange(min=16),
    help="Maximum tokens of text, all files together.  [default: 2048, or a window of each file if that is more]",
)
@click.option("--context", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens per window.")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens between windows.  [default: half the context]")
@click.option(
    "--step-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens to compute one by one with the KV cache.",
)
@click.option(
    "--greedy", type=click.IntRange(min=0), default=64, show_default=True, help="Tokens to generate per prompt."
)
@click.option("--prompts", type=click.IntRange(min=1), default=3, show_default=True, help="Prompts cut from the text.")
@click.option(
    "--max-abs-diff", type=float, help="Bound on the difference of logits.  [default: derived; see the report]"
)
@limit_options
@click.option(
    "--explain",
    is_flag=True,
    help="Print what quantization costs in each part of the model, or the first layer and operator out of bounds if a "
    "check fails.",
)
@click.option("--repeat", is_flag=True, help="Require bit-identical logits across runs and thread counts.")
@click.option("--save-reference", type=click.Path(path_type=Path), help="Save PyTorch's logits to this file.")
@click.option("--reference", type=click.Path(path_type=Path), help="Read PyTorch's logits from this file.")
@click.option("--low-memory", is_flag=True, help="Read PyTorch's weights from disk one module at a time.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per physical core]")
@click.option("--record/--no-record", default=True, show_default=True, help="Write the result to prosparse.json.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from MODEL_DIR. Review it first.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML with one test case per check.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown summary.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def validate_command(
    model_dir: Path,
    onnx_file: Path,
    text_files: tuple[Path, ...],
    limits: LimitOptions,
    record: bool,
    trust_remote_code: bool,
    quiet: bool,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    overwrite: bool,
    **comparison: Any,
) -> None:
    """Compare ONNX_FILE with PyTorch on MODEL_DIR; exit with code 1 if a check fails.

    Exactness is always checked, with the weights as stored: logits of the text (bundled, or yours) in prefill, token
    by token, and in a left-padded batch; greedy generation; the stored weights' bits; every operator and linear layer
    against float64; layers against PyTorch if an activation has a threshold; bit-identical runs. ONNX_FILE runs
    with and without the operator library. If two logits are closer than twice the bound, either token may be top-1.

    Quality is measured against PyTorch with the checkpoint's own weights: perplexity, KL divergence, top-1 and top-5
    agreement, activation sparsity. A quality check fails only if it misses a limit that you set.
    """
    if comparison["save_reference"] is not None and comparison["reference"] is not None:
        raise click.UsageError("--save-reference cannot be combined with --reference")
    check_outputs((junit, markdown, comparison["save_reference"]), overwrite=overwrite)
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.text import read_text  # torch takes seconds to import
        from prosparse_export.validation import ValidationOptions, as_junit, as_markdown, as_text, validate

        comparison["tokens"] = comparison["tokens"] or tokens_by_default(comparison["context"], len(text_files))
        options = ValidationOptions(**comparison, limits=limits.limits())
        texts = [(path.name, read_text(path)) for path in text_files]
        trust = trust_remote_code
        result = validate(model_dir, onnx_file, options, texts=texts, trust_remote_code=trust, progress=progress)
    for path, render in ((junit, as_junit), (markdown, as_markdown)):
        if path is not None:
            atomic_write(path, render(result))
    if record:
        _record(onnx_file, result)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))
    if not result.passed:
        raise SystemExit(1)


def tokens_by_default(context: int, files: int) -> int:
    """Return how many tokens of text to read, so that every file has a window of ``context`` tokens."""
    return max(2048, context * max(files, 1))


def _record(onnx_file: Path, result: Validation) -> None:
    from prosparse_export.validation import record_validation

    if not record_validation(onnx_file, result):
        click.echo("note: prosparse.json was not updated: it is missing or its folder is read-only", err=True)
