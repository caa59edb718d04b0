"""How many neurons consecutive tokens share, beside tokens whose active neurons are drawn at random.

    python benchmarks/shared_neurons.py models/demo --text prosparse_export/text/heldout_wikipedia.txt

Kernels for many tokens read a neuron's weights once for all tokens of a call that use it. The union is the share of
neurons that any of them uses. Shared: the share of the active pairs of token and neuron whose neuron at least half of
the tokens use; at accuracy level 4 those neurons are computed for all tokens (native/src/dot_neurons.cc). Means over
layers and calls; "random" draws the same number of neurons per token and layer, each with the same probability.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from common import help_text
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from prosparse_models.ffns import find_ffns


def activity(folder: Path, text: str, limit: int) -> list[NDArray[np.bool_]]:
    """Return ``[tokens, d_ff]`` for each layer: which inputs of down_proj are not zero."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :limit]
    seen: list[NDArray[np.bool_]] = []

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((inputs[0][0] != 0).numpy())

    for ffn in find_ffns(model):
        ffn.down.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(ids)
    return seen


def shares(active: NDArray[np.bool_], tokens: int) -> tuple[float, float]:
    """Return the union and the shared pairs of calls of ``tokens`` tokens, ``active`` being ``[tokens, d_ff]``."""
    calls = active[: len(active) // tokens * tokens].reshape(-1, tokens, active.shape[1])
    uses = calls.sum(1)
    return float((uses > 0).mean()), float(uses[2 * uses >= tokens].sum() / max(uses.sum(), 1))


def at_random(active: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return as many active neurons for each token, each drawn with the same probability."""
    places = rng.random(active.shape).argsort(1).argsort(1)
    return places < active.sum(1, keepdims=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", "counts", type=click.IntRange(2), multiple=True, default=(4, 16, 128), show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(2), default=1024, show_default=True, help="Tokens of the text to use."
)
def main(model: Path, text: Path, counts: tuple[int, ...], max_tokens: int) -> None:
    """Print one line per number of tokens."""
    layers = activity(model, text.read_text(encoding="utf-8"), max_tokens)
    drawn = [at_random(layer, np.random.default_rng(0)) for layer in layers]
    click.echo(f"{len(layers)} layers, {len(layers[0])} tokens, {np.mean([a.mean() for a in layers]):.1%} active")
    for tokens in counts:
        cells = []
        for kind in (layers, drawn):
            union, shared = np.mean([shares(layer, tokens) for layer in kind], axis=0)
            cells.append(f"union {union:6.1%}, shared {shared:6.1%}")
        click.echo(f"{tokens:4} tokens: {cells[0]}; random: {cells[1]}")


if __name__ == "__main__":
    main()
