"""What rounding the KV cache costs: perplexity of artifacts on the same windows of text, by the length of a window.

    prosparse-export MODEL_DIR out/f32/m.onnx
    prosparse-export MODEL_DIR out/token/m.onnx --kv-cache i8-token
    python benchmarks/cache_accuracy.py out/f32/m.onnx out/token/m.onnx --text a.txt --context 1024 --context 4096

Each window is read in chunks of 512 tokens, as a decoder reads a prompt: all but the first chunk attend to a cache.
Change: of perplexity against the first artifact, with the standard error over windows; both read the same tokens.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
from common import help_text

from prosparse_export import load
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import read_text


def losses(model: SparseModel, ids: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the tokens of a window, ``[tokens]``, after the first."""
    cache, total = None, 0.0
    for begin in range(0, len(ids), PREFILL_TOKENS):
        end = min(begin + PREFILL_TOKENS, len(ids))
        logits, cache = model.forward(ids[None, begin:end], np.ones((1, end), np.int64), cache)
        targets = ids[begin + 1 : end + 1]
        rows = logits[0, : len(targets)].astype(np.float64)
        top = rows.max(-1, keepdims=True)
        normalizers = top[:, 0] + np.log(np.exp(rows - top).sum(-1))
        total += float((normalizers - rows[np.arange(len(targets)), targets]).sum())
    if not math.isfinite(total):
        raise click.ClickException(f"{model.path}: a window's likelihood is {total}")
    return total / (len(ids) - 1)


def change(own: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Return the relative change of perplexity from the losses of the same windows, and its standard error."""
    differences = own - base
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    relative = math.exp(differences.mean())
    return relative - 1, relative * error


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--context", "contexts", type=int, multiple=True, default=(1024, 4096), show_default=True)
@click.option("--windows", type=int, default=8, show_default=True, help="Windows of each text.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(
    artifacts: tuple[Path, ...], texts: tuple[Path, ...], contexts: tuple[int, ...], windows: int, threads: int
) -> None:
    """Parse, measure, print."""
    models = {path.parent.name: load(path, threads=threads) for path in artifacts}
    first = next(iter(models.values()))
    if first.tokenizer is None:
        raise click.ClickException(f"{first.path.parent}: expected a tokenizer.json")
    tokens = [np.array(first.tokenizer.encode(read_text(path)).ids, np.int64) for path in texts]
    for context in contexts:
        cut = [ids[i * context : (i + 1) * context] for ids in tokens for i in range(windows)]
        cut = [ids for ids in cut if len(ids) == context]
        found = {name: np.array([losses(model, ids) for ids in cut]) for name, model in models.items()}
        base = next(iter(found.values()))
        for name, own in found.items():
            relative, error = change(own, base)
            click.echo(
                f"{context:6} tokens, {len(cut):3} windows  {name:16}perplexity {math.exp(own.mean()):8.4f}  "
                f"change {relative:+.4%} +- {error:.4%}"
            )


if __name__ == "__main__":
    main()
