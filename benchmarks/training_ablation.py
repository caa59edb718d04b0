r"""Cost and benefit of the progressive L1 term: forks of one dense model on the same tokens.

    python models/demo/pretrain.py --out out/silu
    python benchmarks/training_ablation.py out/silu out/forks --train out/text/train.jsonl \
        --held-out out/text/heldout.jsonl --seeds 3

Forks: the dense baseline (the original activation, no L1), relu without L1, relu with the recipe's last lambda from
the first step on, and the recipe itself. Each is one ``prosparse sparsify``; a fork whose folder holds a
model is not trained again. A seed orders the text; a fork's folder is FORKS/NAME for seed 0 and FORKS/NAME-SEED for
others. All folders are then measured in this process, as saved; the table gives seed 0 and the range over seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from prosparse_models import find_ffns, load_checkpoint, measure
from prosparse_models.loading.tokenizer import load_tokenizer
from prosparse_models.training.recipe import load_recipe
from prosparse_models.training.training_text import TextSource, evaluation_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def fork_arguments(recipe_name: str) -> dict[str, list[str]]:
    """Return, per fork, what it adds to ``prosparse sparsify``'s arguments."""
    peak, steps = load_recipe(recipe_name).stages[-1]
    return {
        "dense": ["--set", "activation=keep", "--stage", f"0:{steps}"],
        "relu": ["--stage", f"0:{steps}"],
        "constant": ["--stage", f"{peak}:{steps}"],
        "progressive": [],
    }


def train(folder: Path, seed: int, extra: list[str], args: argparse.Namespace) -> None:
    """Run ``prosparse sparsify`` unless ``folder`` holds a model."""
    if (folder / "config.json").is_file():
        return
    command = [sys.executable, "-m", "prosparse_export", "sparsify", str(args.base), str(folder)]
    command += ["--recipe", args.recipe, "--text", str(args.train), "--eval-text", str(args.held_out)]
    command += ["--eval-tokens", "16384", "--save-dtype", "bfloat16", "--threads", str(args.threads)]
    command += ["--set", f"training.seed={seed}", *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, rows: list[torch.Tensor]) -> dict[str, Any]:
    """Return perplexity and sparsity of the model in ``folder``."""
    model = load_checkpoint(folder).model.to(DEVICE)
    return measure(model, find_ffns(model), rows).as_dict()


def spread(values: list[float], scale: float = 1.0) -> str:
    """Return the first value, and the range if there are several."""
    shown = f"{scale * values[0]:.2f}"
    return shown if len(values) < 2 else f"{shown} ({scale * min(values):.2f} to {scale * max(values):.2f})"


def main() -> None:
    """Train what is missing, measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="dense model folder")
    parser.add_argument("forks", type=Path, help="folder for the forks")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each fork, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    forks = fork_arguments(args.recipe)
    folders = {name: [args.forks / (f"{name}-{k}" if k else name) for k in range(args.seeds)] for name in forks}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [(folders[name][k], k, forks[name]) for k in range(args.seeds) for name in forks]
        for done in [pool.submit(train, *run, args) for run in runs]:
            done.result()

    recipe = load_recipe(args.recipe)
    rows = evaluation_rows(
        TextSource.find([args.held_out]), load_tokenizer(args.base), recipe.training.context, args.tokens
    )
    tokens = recipe.steps * recipe.training.sequences_per_step * recipe.training.context
    held_out = len(rows) * recipe.training.context
    print(f"{held_out:,} held-out tokens; each fork: {tokens:,} tokens, {recipe.steps} steps")
    print(f"{'':12} {'perplexity':28} {'to the baseline, %':24} {'sparsity, %':24} by layer; dead neurons (seed 0)")
    figures: dict[str, Any] = {}
    for name, models in {"base": [args.base], **folders}.items():
        runs_of = [measured(folder, rows) for folder in models]
        figures[name] = runs_of
        baselines = [] if name == "base" else figures["dense"]
        ratio = [100 * (f["perplexity"] / t["perplexity"] - 1) for f, t in zip(runs_of, baselines, strict=False)]
        layers = " ".join(f"{100 * s:.1f}" for s in runs_of[0]["sparsity_by_layer"])
        print(
            f"{name:12} {spread([f['perplexity'] for f in runs_of]):28} {spread(ratio) if ratio else '':24} "
            f"{spread([f['sparsity'] for f in runs_of], 100):24} {layers}; {sum(runs_of[0]['dead_by_layer'])}"
        )
    if args.output:
        args.output.write_text(json.dumps({"tokens_per_fork": tokens, **figures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
