"""Where the time of a token goes: inside onnxruntime's run, and around it.

    python benchmarks/decode_profile.py out/model/demo.onnx
    python benchmarks/decode_profile.py out/7b/model.onnx --threads 2 --tokens 100 --temperature 0.8 --top-p 0.9

Runs the loop of `SparseModel.stream` with a clock around onnxruntime's call. "Around" is all of the rest: sampling,
the token's position and mask, and Python's own time. Beside it, the loop over `SparseModel.forward`, which allocates
and hands over everything anew for each token; the two take turns.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

import prosparse_export
from prosparse_export.runtime.model import Cache, SparseModel


class TimedSession:
    """A session that sums the time inside its runs."""

    def __init__(self, session: object) -> None:
        self._session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def run_with_iobinding(self, io: object) -> None:
        """Run and add to `seconds`."""
        began = time.perf_counter()
        self._session.run_with_iobinding(io)  # type: ignore[attr-defined]
        self.seconds += time.perf_counter() - began


def bound_loop(model: SparseModel, prompt: list[int], tokens: int, sampling: dict[str, float]) -> tuple[float, float]:
    """Return seconds per token, and of them those around onnxruntime's call."""
    timed = TimedSession(model.session)
    endless = SparseModel(timed, model.path, model.tokenizer, frozenset(), model.context, model.in_place, model._past)
    stream = endless.stream([prompt], max_new_tokens=tokens + 1, **sampling)
    next(stream)  # prefill
    timed.seconds = 0.0
    began = time.perf_counter()
    for _ in stream:
        pass
    whole = time.perf_counter() - began
    return whole / tokens, (whole - timed.seconds) / tokens


def plain_loop(model: SparseModel, prompt: list[int], tokens: int) -> float:
    """Return seconds per token of the loop over forward()."""
    ids = np.asarray([prompt], np.int64)
    mask = np.ones_like(ids)
    cache: Cache | None = None
    logits, cache = model.forward(ids, mask, cache)
    began = time.perf_counter()
    for _ in range(tokens):
        mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
        logits, cache = model.forward(logits[:, -1].argmax(-1)[:, None], mask, cache)
    return (time.perf_counter() - began) / tokens


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("onnx_file", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--prompt", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens.")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Decoded per round.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--spinning/--no-spinning", default=True, show_default=True)
def main(
    onnx_file: Path,
    threads: int,
    prompt: int,
    tokens: int,
    rounds: int,
    temperature: float,
    top_k: int,
    top_p: float,
    spinning: bool,
) -> None:
    """Measure the time of a token inside and around onnxruntime's call."""
    model = prosparse_export.load(onnx_file, threads=threads, spinning=spinning)
    ids = np.random.default_rng(0).integers(3, 4000, prompt).tolist()
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    times = [(*bound_loop(model, ids, tokens, sampling), plain_loop(model, ids, tokens)) for _ in range(rounds + 1)][1:]
    whole, around, plain = np.median(times, axis=0) * 1e6
    shares = sorted(100 * t[1] / t[0] for t in times)
    ratios = sorted(t[2] / t[0] for t in times)
    click.echo(f"{onnx_file.name}: {prompt} tokens of prompt, {tokens} decoded, {threads} threads, {rounds} rounds")
    click.echo(
        f"a token: {whole:.0f} us, of them {around:.1f} us around onnxruntime's call: {shares[rounds // 2]:.2f} %"
    )
    click.echo(f"         (quartiles {shares[rounds // 4]:.2f} to {shares[-1 - rounds // 4]:.2f} %)")
    click.echo(
        f"loop over forward(): {plain:.0f} us, x{ratios[rounds // 2]:.2f}"
        f" (quartiles {ratios[rounds // 4]:.2f} to {ratios[-1 - rounds // 4]:.2f})"
    )


if __name__ == "__main__":
    main()
