"""``prosparse validate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from prosparse_export.artifact.atomic_write import atomic_write
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.outputs import check_outputs

__all__ = ["validate_command"]

_EXAMPLES = """
Examples:
  prosparse validate models/demo out/demo.onnx
  prosparse validate MODEL_DIR out/7b.onnx --text mine.txt --text other.txt --max-tokens 100000
  prosparse validate models/demo out/demo.onnx --max-ppl-increase 0.5% --min-top1 99.5% --min-sparsity 80%
  prosparse validate models/demo out/demo.onnx --limits limits.toml --junit report.xml --markdown summary.md
  prosparse validate models/demo out/demo.onnx --json > report.json   # exit 1 if a check fails
  prosparse validate MODEL_DIR out/7b.onnx --save-reference 7b.ref    # once, on a large machine
  prosparse validate MODEL_DIR out/7b-i4.onnx --reference 7b.ref      # then without PyTorch's model

Limits may be in a TOML file, options come first; docs/guides/validate.md has an example.
"""


@click.command("validate", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--text", "text_files", type=click.Path(path_type=Path), multiple=True, help="Text, UTF-8. Repeatable.")
@click.option(
    "--max-tokens", "--tokens", type=click.IntRange(min=16), default=2048, show_default=True, help="Tokens of text."
)
@click.option("--context", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens per window.")
@click.option("--stride", type=click.IntRange(min=1), help="From window to window.  [default: half the context]")
@click.option("--step-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Computed one by one.")
@click.option(
    "--greedy", type=click.IntRange(min=0), default=64, show_default=True, help="Tokens generated per prompt."
)
@click.option("--prompts", type=click.IntRange(min=1), default=3, show_default=True, help="Prompts, cut from the text.")
@click.option("--max-abs-diff", type=float, help="Bound on a logit's difference.  [default: by weight format]")
@click.option("--max-ppl-increase", metavar="SHARE", help="Limit, for instance 0.5%: relative to PyTorch's perplexity.")
@click.option("--min-top1", metavar="SHARE", help="Limit: positions with PyTorch's likeliest token.")
@click.option("--min-top5", metavar="SHARE", help="Limit: positions whose likeliest token is among PyTorch's five.")
@click.option("--max-kl", type=click.FloatRange(min=0), help="Limit: mean KL divergence per token, nats.")
@click.option("--min-greedy-match", metavar="SHARE", help="Limit: greedy tokens before the first that differs.")
@click.option("--min-sparsity", "sparsities", metavar="SHARE", multiple=True, help='Limit: 80% or "layer 7: 85%".')
@click.option("--limits", "limits_file", type=click.Path(path_type=Path), help="Limits from a TOML file.")
@click.option("--explain", is_flag=True, help="If a check fails, name the first layer and operator beyond its bound.")
@click.option("--repeat", is_flag=True, help="All of the text twice, with 1 and with several threads: the same bits.")
@click.option("--save-reference", type=click.Path(path_type=Path), help="Keep PyTorch's logits in this file.")
@click.option("--reference", type=click.Path(path_type=Path), help="Take them from this file instead.")
@click.option("--low-memory", is_flag=True, help="Leave PyTorch's matrices in their files; read a module's at a time.")
@click.option("--threads", type=click.IntRange(min=1), help="Intra-op threads.  [default: one per core]")
@click.option("--record/--no-record", default=True, show_default=True, help="Put the result into prosparse.json.")
@click.option("--trust-remote-code", is_flag=True, help="Let Python code in MODEL_DIR run. Read it first.")
@click.option("-q", "--quiet", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML, one case per check.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown summary.")
@click.option("--overwrite", is_flag=True, help="Replace files that are in the way.")
def validate_command(
    model_dir: Path,
    onnx_file: Path,
    text_files: tuple[Path, ...],
    max_tokens: int,
    context: int,
    stride: int | None,
    step_tokens: int,
    greedy: int,
    prompts: int,
    max_abs_diff: float | None,
    max_ppl_increase: str | None,
    min_top1: str | None,
    min_top5: str | None,
    max_kl: float | None,
    min_greedy_match: str | None,
    sparsities: tuple[str, ...],
    limits_file: Path | None,
    explain: bool,
    repeat: bool,
    save_reference: Path | None,
    reference: Path | None,
    low_memory: bool,
    threads: int | None,
    record: bool,
    trust_remote_code: bool,
    quiet: bool,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    overwrite: bool,
) -> None:
    """Compare ONNX_FILE, with and without the sparse kernels, with PyTorch on MODEL_DIR; exit 1 if a check fails.

    Exactness, always: logits of real text (bundled, or yours) in one go, token by token and as a left-padded batch,
    greedy generation, the stored weights' bits, every operator and linear layer against float64, layers against PyTorch
    where an activation has a threshold, and the same bits again, all with the weights as stored.
    Two tokens whose logits are nearer than twice the bound count as a tie.

    Quality: perplexity, KL divergence, top-1 and top-5 against PyTorch with the checkpoint's own weights, and
    sparsity; these fail only by the limits that you set.
    """
    if save_reference is not None and reference is not None:
        raise click.UsageError("--save-reference and --reference exclude each other")
    check_outputs((junit, markdown, save_reference), overwrite=overwrite)
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        from prosparse_export.text import read_text
        from prosparse_export.validation import (  # torch takes seconds to import
            Limits,
            ValidationOptions,
            as_junit,
            as_markdown,
            as_text,
            parse_share,
            parse_sparsity,
            read_limits,
            record_validation,
            validate,
        )

        shares = {
            "max_ppl_increase": max_ppl_increase,
            "min_top1": min_top1,
            "min_top5": min_top5,
            "min_greedy_match": min_greedy_match,
        }
        given: dict[str, Any] = {
            name: parse_share(value, "--" + name.replace("_", "-"))
            for name, value in shares.items()
            if value is not None
        }
        limits = read_limits(limits_file) if limits_file else Limits()
        limits = limits.updated(parse_sparsity(sparsities)).updated(replace(Limits(max_kl=max_kl), **given))
        options = ValidationOptions(
            tokens=max_tokens,
            context=context,
            stride=stride,
            max_abs_diff=max_abs_diff,
            greedy=greedy,
            prompts=prompts,
            step_tokens=step_tokens,
            threads=threads,
            repeat=repeat,
            limits=limits,
            explain=explain,
            save_reference=save_reference,
            reference=reference,
            low_memory=low_memory,
        )
        texts = [(path.name, read_text(path)) for path in text_files]
        result = validate(
            model_dir, onnx_file, options, texts=texts, trust_remote_code=trust_remote_code, progress=progress
        )
    for path, contents in ((junit, as_junit), (markdown, as_markdown)):
        if path is not None:
            atomic_write(path, contents(result))
    if record and not record_validation(onnx_file, result):
        click.echo("note: prosparse.json was not updated: there is none, or its folder is read-only", err=True)
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else as_text(result))
    if not result.passed:
        raise SystemExit(1)
