"""``prosparse sparsify``."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.training_display import TrainingDisplay

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
        self.fail(f"{value!r}: expected LAMBDA:LAST_STEP, for instance 1e-3:500", param, ctx)


@click.command("sparsify", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Text to train on: .txt, .md, .jsonl, .parquet, or a folder of them. Repeatable.",
)
@click.option(
    "--eval-text",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text to measure on.  [default: one document in 50 of --text is held out]",
)
@click.option("--text-column", default="text", show_default=True, help="Column of .jsonl and .parquet.")
@click.option("--recipe", "recipe_name", default="demo", show_default=True, help="A recipe's name or TOML file.")
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *a: _list(*a),
    help="Print the recipes that come with the package, and exit.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a recipe's value. Repeatable.")
@click.option("--stage", "stages", type=_Stage(), multiple=True, help="Replace the recipe's stages. Repeatable.")
@click.option(
    "--target-sparsity", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Steer lambda to it."
)
@click.option("--eval-tokens", type=click.IntRange(min=2), default=65_536, show_default=True)
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps.")
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True, help="Steps.")
@click.option("--keep-checkpoints", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--save-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Weights on disk.  [default: as in MODEL_DIR]",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of torch.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in OUT_DIR.")
@click.option(
    "--replan", is_flag=True, help="With --resume: other stages after that checkpoint, to shorten or lengthen a run."
)
@click.option("--overwrite", is_flag=True, help="Replace what is in OUT_DIR.")
@click.option("--trust-remote-code", is_flag=True, help="Let Python code in MODEL_DIR run. Read it first.")
@click.option("-q", "--quiet", is_flag=True, help="No progress display.")
@click.option("--json", "as_json", is_flag=True, help="Print sparsify.json.")
def sparsify_command(
    model_dir: Path,
    out_dir: Path,
    text: tuple[Path, ...],
    eval_text: tuple[Path, ...],
    text_column: str,
    recipe_name: str,
    settings: tuple[str, ...],
    stages: tuple[tuple[float, int], ...],
    target_sparsity: float | None,
    eval_tokens: int,
    log_every: int,
    save_every: int,
    keep_checkpoints: int,
    save_dtype: str | None,
    threads: int | None,
    resume: bool,
    replan: bool,
    overwrite: bool,
    trust_remote_code: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train MODEL_DIR, a folder or ORG/NAME on the Hugging Face Hub, to have sparse FFNs; write the folder OUT_DIR.

    ProSparse: the FFN activation becomes a ReLU, training goes on with an L1 term whose factor rises
    along sine curves in stages. OUT_DIR also gets sparsify.json, training.png and checkpoints/.
    `prosparse calibrate` then shifts the threshold. Needs the extra [train].
    """
    if replan and not resume:
        raise click.UsageError("--replan is for --resume: a new run takes any stages")
    display = TrainingDisplay(quiet=quiet)
    display.status("start")
    from prosparse_export.cli.training import run_sparsify  # torch takes seconds to import

    try:
        summary = run_sparsify(
            model_dir,
            out_dir,
            recipe_name=recipe_name,
            settings=settings,
            stages=stages,
            threads=threads,
            monitor=display,
            text=text,
            eval_text=eval_text,
            text_column=text_column,
            eval_tokens=eval_tokens,
            target_sparsity=target_sparsity,
            log_every=log_every,
            save_every=save_every,
            keep_checkpoints=keep_checkpoints,
            save_dtype=save_dtype,
            resume=resume,
            replan=replan,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        if next(out_dir.glob("checkpoints/checkpoint-*"), None) is not None:
            click.echo("hint: the same command with --resume goes on from the newest checkpoint", err=True)
        else:  # nothing was kept
            with suppress(OSError):
                (out_dir / "checkpoints").rmdir()
                out_dir.rmdir()
        raise
    finally:
        display.stop()
    if summary is None:  # not the first process
        return
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    click.echo(f"{'':16} {'step':>8} {'lambda':>10} {'perplexity':>11} {'sparsity':>9}  by layer")
    for e in summary["evaluations"]:
        layers = e["sparsity_by_layer"]
        click.echo(
            f"{e['when']:16} {e['step']:8} {e['lambda']:10.3g} {e['perplexity']:11.2f} {100 * e['sparsity']:8.2f}%  "
            f"{100 * min(layers):.1f} to {100 * max(layers):.1f}"
        )
    click.echo(f"{out_dir}: {summary['tokens']:,} tokens in {summary['seconds']:,.0f} s")


def _list(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from prosparse_models.training.recipe import load_recipe, recipe_names

    for name in recipe_names():
        click.echo(f"{name:14} {load_recipe(name).description}")
    ctx.exit()
