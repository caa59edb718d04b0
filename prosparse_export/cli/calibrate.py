"""``prosparse calibrate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.budget_options import Percent
from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.display import stages
from prosparse_export.cli.extras import require_packages
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet

__all__ = ["calibrate_command"]

_EXAMPLES = """
Examples:
  prosparse calibrate out/sparse --text calibration.jsonl                        # print the table
  prosparse calibrate out/sparse out/shifted --text calibration.jsonl --budget 0.5%
  prosparse calibrate out/sparse out/shifted --text calibration.jsonl --per-layer
  prosparse calibrate out/sparse --text calibration.jsonl --in-place
"""


@click.command(
    "calibrate",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Find the FATReLU threshold within a perplexity budget.",
)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path), required=False)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Calibration text: .txt, .md, .json, .jsonl, .parquet, or a folder of them. Repeatable.",
)
@click.option("--text-column", default="text", show_default=True, help="Text column of .json, .jsonl and .parquet.")
@click.option("--tokens", type=click.IntRange(min=2), default=65_536, show_default=True, help="Tokens of text to use.")
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens per sequence.")
@click.option(
    "--budget",
    type=Percent(),
    default="1%",
    show_default=True,
    help="Allowed perplexity increase.",
)
@click.option("--per-layer", is_flag=True, help="One threshold per layer instead of one for all.")
@click.option(
    "--threshold", "thresholds", type=click.FloatRange(min=0), multiple=True, help="Try this threshold too. Repeatable."
)
@click.option("--in-place", is_flag=True, help="Write the threshold into MODEL_DIR/config.json.")
@click.option("--overwrite", is_flag=True, help="Replace OUT_DIR.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for PyTorch.  [default: PyTorch's]")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from MODEL_DIR. Review it first.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate_command(
    model_dir: Path,
    out_dir: Path | None,
    *,
    budget: float,
    in_place: bool,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the largest FATReLU threshold of MODEL_DIR within a perplexity budget; write the model to OUT_DIR.

    A neuron is active where its pre-activation exceeds the threshold. Prints threshold, sparsity and perplexity of
    every trial. Without OUT_DIR or --in-place, nothing is written.
    """
    if in_place and out_dir is not None:
        raise click.UsageError("OUT_DIR cannot be combined with --in-place")
    if out_dir is not None and out_dir.resolve() == model_dir.resolve():
        raise click.UsageError("OUT_DIR is MODEL_DIR: choose another folder, or pass --in-place to modify this one")
    require_packages("datasets")
    with stages(quiet=quiet) as progress:
        progress("start", 0, 0)
        target = model_dir if in_place else out_dir
        result = _run(model_dir, target, threads, {**options, "budget": budget}, progress)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print_result(result, per_layer=options["per_layer"])


def _run(
    model_dir: Path,
    out_dir: Path | None,
    threads: int | None,
    options: Mapping[str, Any],
    progress: ProgressCallback,
) -> dict[str, Any]:
    import torch  # takes seconds to import

    from prosparse_models.training.calibrate_folder import CalibrateOptions, calibrate_folder

    if threads is not None:
        torch.set_num_threads(threads)
    with quiet():
        return calibrate_folder(model_dir, out_dir, CalibrateOptions(**options), progress)


def _print_result(result: Mapping[str, Any], *, per_layer: bool) -> None:
    head = "energy dropped" if per_layer else "threshold"
    click.echo(f"{head:>14} {'sparsity':>9} {'perplexity':>11} {'change':>8}  by layer")
    start = result["trials"][0]["perplexity"]
    for trial in result["trials"]:
        layers = trial["sparsity_by_layer"]
        change = 100 * (trial["perplexity"] / start - 1)
        mark = " <- chosen" if trial["value"] == result["chosen"]["value"] else ""
        click.echo(
            f"{trial['value']:14.5g} {100 * trial['sparsity']:8.2f}% {trial['perplexity']:11.3f} {change:+7.2f}%  "
            f"{100 * min(layers):.1f} to {100 * max(layers):.1f}{mark}"
        )
    if per_layer:
        click.echo("thresholds: " + " ".join(f"{t:.4g}" for t in result["chosen"]["thresholds"]))
    if result["written"]:
        click.echo(f"{result['written']}: fatrelu, hidden_act_param {result['hidden_act_param']}")
