"""``prosparse sparsify``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.extras import require_packages
from prosparse_export.cli.training_display import TrainingDisplay, training_display
from prosparse_export.quiet import quiet

__all__ = ["sparsify_command"]

_EXAMPLES = """
Examples:
  prosparse sparsify llama-7b out/sparse --recipe prosparse-7b --text corpus/ --eval-text heldout.jsonl
  prosparse sparsify ORG/NAME out/sparse --recipe demo --text train.jsonl   # from the Hugging Face Hub
  prosparse sparsify base out/sparse --recipe demo --text train.jsonl --set training.learning_rate=5e-4
  prosparse sparsify base out/sparse --recipe demo --text train.jsonl --target-sparsity 0.9
  prosparse sparsify base out/sparse --recipe demo --text train.jsonl --resume      # after an interruption
  prosparse sparsify base out/dense --recipe demo --text train.jsonl --set activation=keep --stage 0:1080
  torchrun --nproc-per-node 8 -m prosparse_export sparsify llama-7b out/sparse --recipe prosparse-7b --text corpus/
"""


class _Stage(click.ParamType):  # type: ignore[type-arg]
    name = "LAMBDA:LAST_STEP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, int]:
        match = re.fullmatch(r"([0-9.eE+-]+):([0-9]+)", str(value))
        try:
            if match:
                return float(match[1]), int(match[2])
        except ValueError:
            pass
        self.fail(f"{value!r}: expected LAMBDA:LAST_STEP, for example 1e-3:500", param, ctx)


@click.command(
    "sparsify",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Train a model for activation sparsity.",
)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Text to train on: .txt, .md, .json, .jsonl, .parquet, or a folder of them. Repeatable.",
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text to evaluate on.  [default: hold out one document in 50 of --text]",
)
@click.option("--text-column", default="text", show_default=True, help="Text column of .json, .jsonl and .parquet.")
@click.option("--recipe", "recipe_name", default="demo", show_default=True, help="Recipe name or TOML file.")
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *a: _list(*a),
    help="List the included recipes and exit.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a recipe setting. Repeatable.")
@click.option("--stage", "stages", type=_Stage(), multiple=True, help="Replace the recipe's stages. Repeatable.")
@click.option(
    "--target-sparsity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Adjust lambda to reach this sparsity.",
)
@click.option(
    "--eval-tokens", type=click.IntRange(min=2), default=65_536, show_default=True, help="Tokens to evaluate on."
)
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps between records.")
@click.option(
    "--save-every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps between checkpoints."
)
@click.option(
    "--keep-checkpoints", type=click.IntRange(min=1), default=2, show_default=True, help="Checkpoints to keep."
)
@click.option(
    "--save-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="dtype of the saved weights.  [default: as in MODEL_DIR]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads for PyTorch.  [default: PyTorch's]")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in OUT_DIR.")
@click.option("--replan", is_flag=True, help="With --resume: change the stages after that checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the contents of OUT_DIR.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code from MODEL_DIR. Review it first.")
@click.option("-q", "--quiet", is_flag=True, help="Hide progress.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (the content of sparsify.json).")
def sparsify_command(
    model_dir: Path,
    out_dir: Path,
    *,
    recipe_name: str,
    settings: tuple[str, ...],
    stages: tuple[tuple[float, int], ...],
    threads: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train MODEL_DIR, a folder or ORG/NAME on the Hugging Face Hub, for activation sparsity; write the folder OUT_DIR.

    ProSparse: the FFN activation becomes ReLU, and training continues with an L1 penalty whose weight (lambda) rises in
    sine-shaped stages. OUT_DIR also gets sparsify.json, training.png and checkpoints/. Then run `prosparse
    calibrate` to shift the threshold. Requires the extra [train].
    """
    if options["replan"] and not options["resume"]:
        raise click.UsageError("--replan requires --resume: a new run accepts any stages")
    require_packages("accelerate", "datasets", "matplotlib")
    try:
        with training_display(quiet=quiet) as monitor:
            monitor.progress("start", 0, 0)
            recipe_options = (recipe_name, settings, stages)
            summary = _run(model_dir, out_dir, recipe_options, threads, monitor, options)
    except KeyboardInterrupt:
        if next(out_dir.glob("checkpoints/checkpoint-*"), None) is not None:
            click.echo("hint: run the same command with --resume to continue from the newest checkpoint", err=True)
        else:  # nothing to keep
            with suppress(OSError):
                (out_dir / "checkpoints").rmdir()
                out_dir.rmdir()
        raise
    if summary is None:
        return
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        _print_evaluations(summary["evaluations"])
        click.echo(f"{out_dir}: {summary['tokens']:,} tokens in {summary['seconds']:,.0f} s")


def _run(
    model_dir: Path,
    out_dir: Path,
    recipe_options: tuple[str, Sequence[str], Sequence[tuple[float, int]]],
    threads: int | None,
    monitor: TrainingDisplay,
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Run `prosparse_models.training.sparsify.sparsify`; return None in all processes but the first."""
    import torch  # takes seconds to import

    from prosparse_models.loading.hub import find_model_folder
    from prosparse_models.training.recipe import load_recipe, override
    from prosparse_models.training.sparsify import sparsify
    from prosparse_models.training.sparsify_options import SparsifyOptions

    if threads is not None:
        torch.set_num_threads(threads)
    name, settings, stages = recipe_options
    trust = options["trust_remote_code"]
    with quiet():
        recipe = override(load_recipe(name), settings, stages)
        folder = find_model_folder(model_dir, trust_remote_code=trust, progress=monitor.progress)
        summary = sparsify(folder, out_dir, recipe, SparsifyOptions(**options), monitor)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return summary if int(os.environ.get("RANK", "0")) == 0 else None


def _print_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> None:
    click.echo(f"{'':16} {'step':>8} {'lambda':>10} {'perplexity':>11} {'sparsity':>9}  by layer")
    for e in evaluations:
        layers = e["sparsity_by_layer"]
        click.echo(
            f"{e['when']:16} {e['step']:8} {e['lambda']:10.3g} {e['perplexity']:11.2f} {100 * e['sparsity']:8.2f}%  "
            f"{100 * min(layers):.1f} to {100 * max(layers):.1f}"
        )


def _list(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from prosparse_models.training.recipe import load_recipe, recipe_names

    for name in recipe_names():
        click.echo(f"{name:14} {load_recipe(name).description}")
    ctx.exit()
