r"""What the progressive L1 costs and gives: forks of one dense model on the same tokens.

    python models/demo/pretrain.py --out out/silu --text out/text
    python benchmarks/training_ablation.py out/silu out/forks --train out/text/train.jsonl \
        --held-out out/text/heldout.jsonl

Forks: the dense twin (its own activation, no L1), relu without L1, relu with the recipe's last lambda from
the first step on, and the recipe itself. Each is one ``prosparse sparsify``; a fork whose folder holds a
model is not trained again. All folders are then measured in this process, as saved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from prosparse_models import find_ffn_blocks, load_checkpoint, measure
from prosparse_models.recipe import load_recipe
from prosparse_models.tokenizer import load_tokenizer
from prosparse_models.training_text import TextSource, evaluation_rows


def main() -> None:
    """Train what is missing, measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="dense model folder")
    parser.add_argument("forks", type=Path, help="folder for the forks")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    recipe = load_recipe(args.recipe)
    peak, steps = recipe.stages[-1]
    forks = {
        "dense": ["--set", "activation=keep", "--stage", f"0:{steps}"],
        "relu": ["--stage", f"0:{steps}"],
        "constant": ["--stage", f"{peak}:{steps}"],
        "progressive": [],
    }
    for name, extra in forks.items():
        if (args.forks / name / "config.json").is_file():
            continue
        command = [sys.executable, "-m", "prosparse_export", "sparsify", str(args.base), str(args.forks / name)]
        command += ["--recipe", args.recipe, "--text", str(args.train), "--eval-text", str(args.held_out)]
        command += ["--eval-tokens", "16384", "--save-dtype", "bfloat16", "--threads", str(args.threads), *extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    rows = evaluation_rows(
        TextSource.find([args.held_out]), load_tokenizer(args.base), recipe.training.context, args.tokens
    )
    tokens = steps * recipe.training.sequences_per_step * recipe.training.context
    print(f"{len(rows) * recipe.training.context:,} held-out tokens; each fork: {tokens:,} tokens, {steps} steps")
    print(f"{'':12} {'perplexity':>10} {'to dense':>9} {'sparsity':>9}  by layer; dead, always-on neurons")
    figures = {}
    for name, folder in {"base": args.base, **{name: args.forks / name for name in forks}}.items():
        model = load_checkpoint(folder).model
        found = measure(model, find_ffn_blocks(model), rows)
        figures[name] = found.as_dict()
        ratio = found.perplexity / figures["dense"]["perplexity"] - 1 if "dense" in figures else float("nan")
        layers = " ".join(f"{100 * s:.1f}" for s in found.sparsity_by_layer)
        print(
            f"{name:12} {found.perplexity:10.2f} {'' if ratio != ratio else f'{100 * ratio:+8.2f}%':>9} "
            f"{100 * found.sparsity:8.2f}%  {layers}; {sum(found.dead_by_layer)}, {sum(found.always_on_by_layer)}"
        )
    if args.json:
        args.json.write_text(json.dumps({"tokens_per_fork": tokens, **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
