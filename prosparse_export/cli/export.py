"""``prosparse export``, also installed as ``prosparse-export``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from prosparse_export.cli.accuracy_option import accuracy_level_option
from prosparse_export.cli.budget_options import Percent, Size
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.describe import describe_approximation, describe_speedup
from prosparse_export.cli.display import stages
from prosparse_export.cli.format_choice import FormatChoice
from prosparse_export.cli.libraries_option import libraries_option
from prosparse_export.cli.time_left import export_seconds
from prosparse_export.collection import collection_paused
from prosparse_export.errors import ProSparseError

if TYPE_CHECKING:
    from graph_passes import FfnFormat, Format
    from graph_passes.custom_ops import AccuracyLevel
    from prosparse_export.export import ExportResult

__all__ = ["export_command"]

_FOUR_BITS = {"i4", "nl4", "i4i8", "nl4i8"}
_INTEGERS = _FOUR_BITS | {"i8"}  # formats for which the model runs on text

_EXAMPLES = """
Examples:
  prosparse-export models/demo out/demo/demo.onnx
  prosparse-export prosparse-llama-2-7b out/7b/m.onnx --weights nl4 -v
  prosparse-export model out/small/m.onnx --weights nl4 --target-size 105MB --profile-text mytext.txt
  prosparse-export models/demo out/long/demo.onnx --kv-cache i8        # 8-bit KV cache
  prosparse-export models/demo out/profiled/demo.onnx --profile-text mytext.txt   # predict the speedup
  prosparse-export models/demo out/unfused/demo.onnx --attention unfused
  prosparse-export MiniCPM-S-1B-sft-llama-format out/1b/m.onnx --threshold 0.03
  prosparse-export SmolLM2-135M out/lossy/m.onnx --approximate silu --keep 0.5 --profile-text text.txt   # LOSSY
"""


@click.command(
    "export",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Export a model folder to ONNX.",
)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT.onnx", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--allow-dense", is_flag=True, help="Write the model even if no FFN can be rewritten.")
@click.option(
    "--attention",
    type=click.Choice(["fused", "unfused"]),
    default="fused",
    show_default=True,
    help="fused: one operator per attention and per norm, onnxruntime >= 1.20. unfused: standard operators, >= 1.18.",
)
@click.option(
    "--weights",
    type=FormatChoice("checkpoint", ffn=True),
    default="checkpoint",
    show_default=True,
    help="Storage format of the sparse FFNs. checkpoint: the checkpoint's float type. i8, i4, nl4: integers with one "
    "scale per 32 weights; smaller and faster, but rounded. nl4: 4 bits as in i4, but "
    "the 16 values are closer to each other near 0, which is more accurate and slightly slower. i4i8, nl4i8: likewise, "
    "with down_proj in i8. With 4 bits, the embedding, lm_head, and v_proj of grouped heads stay in i8.",
)
@click.option(
    "--other-weights",
    type=FormatChoice("same", ffn=False),
    default="same",
    show_default=True,
    help="Storage format of attention, lm_head, and the embedding. same: as --weights (i4 for i4i8, "
    "nl4 for nl4i8), with some matrices in i8.",
)
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "compensated"]),
    default="auto",
    show_default=True,
    help="How 4 bits are rounded. compensated: later columns of a matrix make up for the rounding errors of earlier "
    "ones, for the inputs that --profile-text or a bundled text gives. auto: compensated with --profile-text, "
    "--target-size, or --max-ppl-increase; else nearest.",
)
@click.option(
    "--target-size",
    type=Size(),
    help="With --weights nl4 or i4: measure what each part of the model costs, and store in i8 what gains most per "
    "byte, up to this size of graph and weights, such as 105MB.",
)
@click.option(
    "--max-ppl-increase",
    type=Percent(),
    help="With --weights nl4 or i4: store in i8 as few parts as keep the growth of perplexity within this, such as 5%, "
    "measured on up to 1,024 tokens at the end of the text.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["f32", "i8", "i8-token"]),
    default="f32",
    show_default=True,
    help="Storage format of the KV cache. i8 and i8-token: about a quarter of the memory and faster at long contexts, "
    "but rounded. i8: onnxruntime's operator (>= 1.27), scales from --profile-text or a bundled text. i8-token: "
    "our operator, a scale per token and 32 values; with the operator library faster than i8, without it slow.",
)
@accuracy_level_option()
@click.option(
    "--activation",
    type=click.Choice(["relu", "relu2", "fatrelu", "drelu"]),
    help="The FFN activation, if config.json states the wrong one.",
)
@click.option("--threshold", type=click.FloatRange(min=0.0), help="FATReLU threshold; turns relu into fatrelu.")
@click.option(
    "--decomposed",
    is_flag=True,
    help="Write standard ONNX operators only, for OpenVINO and others: dense FFNs, unfused attention.",
)
@click.option(
    "--approximate",
    type=click.Choice(["silu"]),
    help="LOSSY: training-free sparsity for SwiGLU models. Zeroes activations below a threshold per layer and prints "
    "the cost in perplexity. Requires --profile-text.",
)
@click.option(
    "--keep",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True, max_open=True),
    help="With --approximate: fraction of neurons that stay active, by magnitude.  [default: 0.5]",
)
@click.option(
    "--profile-text",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Representative plain text, UTF-8. Measures each FFN's activation sparsity, leaves FFNs dense that would not "
    "get faster, and predicts the speedup. Also calibrates integer formats and the KV cache. Repeatable.",
)
@libraries_option()
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from MODEL_DIR. Review it first.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="List all FFNs and attention layers, with the reason if not rewritten, and say how many layers were traced.",
)
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def export_command(
    model_dir: Path,
    output: Path,
    overwrite: bool,
    allow_dense: bool,
    attention: str,
    weights: str,
    other_weights: str,
    rounding: str,
    target_size: int | None,
    max_ppl_increase: float | None,
    kv_cache: str,
    accuracy_level: AccuracyLevel,
    activation: str | None,
    threshold: float | None,
    decomposed: bool,
    approximate: str | None,
    keep: float | None,
    profile_text: tuple[Path, ...],
    libraries: str,
    trust_remote_code: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Export MODEL_DIR to the file OUT.onnx, with its ReLU FFNs as sparse operators.

    MODEL_DIR holds config.json, *.safetensors, and the tokenizer. Next to OUT.onnx go its weights (OUT.onnx.data),
    config.json, the tokenizer, prosparse.json, and the operator libraries. If anything fails, nothing is written.
    """
    _check_order(model_dir)
    _check_approximate(approximate, keep, activation, threshold)
    with stages(quiet=quiet, expected=_expected_seconds(click.get_current_context().params)) as progress:
        progress("start", 0, 0)
        with collection_paused():  # torch takes seconds to import
            from prosparse_export.export import Approximation, ExportOptions, export_model

        options = ExportOptions(
            overwrite=overwrite,
            allow_dense=allow_dense,
            fuse_attention=attention == "fused",
            libraries=libraries,
            trust_remote_code=trust_remote_code,
            weights=None if weights == "checkpoint" else cast("FfnFormat", weights),
            other_weights=None if other_weights == "same" else cast("Format", other_weights),
            rounding=None if rounding == "auto" else cast("Literal['nearest', 'compensated']", rounding),
            target_bytes=target_size,
            max_ppl_increase=max_ppl_increase,
            accuracy_level=accuracy_level,
            kv_cache=cast("Literal['f32', 'i8', 'i8-token']", kv_cache),
            activation=activation,
            threshold=threshold,
            decomposed=decomposed,
            profile_texts=() if approximate else profile_text,
            approximate=Approximation(keep or 0.5, profile_text, approximate) if approximate else None,
        )
        result = export_model(model_dir, output, options, progress)
    _print_result(result, verbose=verbose, as_json=as_json)


def _expected_seconds(options: Mapping[str, Any]) -> dict[str, float]:
    """Return about how long each stage of an export takes with ``options`` of the command."""
    formats = {options["weights"], options["other_weights"]}
    has_text = bool(options["profile_text"]) and options["approximate"] is None
    has_budget = options["target_size"] is not None or options["max_ppl_increase"] is not None
    compensates = options["rounding"] == "compensated" or (options["rounding"] == "auto" and (has_text or has_budget))
    return export_seconds(
        options["model_dir"],
        measures_inputs=not _INTEGERS.isdisjoint(formats),
        profiles=has_text,
        compensates=compensates and not formats.isdisjoint(_FOUR_BITS),
        budgets=has_budget,
    )


def _check_approximate(
    approximate: str | None, keep: float | None, activation: str | None, threshold: float | None
) -> None:
    if approximate is None and keep is not None:
        raise click.UsageError("--keep requires --approximate")
    if approximate is not None and not (activation is None and threshold is None):
        raise click.UsageError("--approximate cannot be combined with --activation or --threshold")


def _check_order(model_dir: Path) -> None:
    if model_dir.suffix == ".onnx" and not model_dir.is_dir():
        raise ProSparseError(
            f"model folder: {model_dir}: expected a folder, got an .onnx file",
            hint="pass the model folder first, then the .onnx file",
        )


def _print_result(result: ExportResult, *, verbose: bool, as_json: bool) -> None:
    for line in result.warnings:
        click.echo(f"warning: {line}", err=True)
    if verbose:
        click.echo(result.traced, err=True)
        for outcome in (*result.rewritten, *result.not_rewritten):
            click.echo(str(outcome), err=True)
        for line in result.attention_not_fused:
            click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(result.manifest.to_dict(), indent=2))
        return
    for line in describe_speedup(result.manifest.predicted_speedup):
        click.echo(line)
    click.echo(f"{result.path}: {len(result.rewritten)} FFNs rewritten, {len(result.not_rewritten)} not rewritten")
    if (lossy := result.manifest.approximation) is not None:
        click.echo(f"LOSSY: {describe_approximation(lossy)}")
