"""What one product for q, k and v, with the rotation inside attention, gains over three and an operator of its own.

    python benchmarks/packed_qkv.py out/tl --weights i4 --threads 1 --threads 2

Exports MODEL_DIR both ways into --work and times decode and prefill of both in turns: medians of paired ratios
with quartiles. The greedy tokens of both are compared too.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from unittest import mock

import click
import numpy as np

from prosparse_export import ExportOptions, export_model, load
from prosparse_export.runtime.model import SparseModel

FORMATS = ["f32", "f16", "bf16", "i8", "i4"]
_CONTEXT, _TOKENS = 128, 32
_WARM = 2  # rounds that do not count


def both(folder: Path, work: Path, weights: str) -> dict[str, Path]:
    """Export ``folder`` both ways."""
    paths = {way: work / f"{way}-{weights}" / "m.onnx" for way in ("packed", "apart")}
    options = ExportOptions(weights=weights, allow_dense=True, overwrite=True)
    export_model(folder, paths["packed"], options)
    with mock.patch("graph_passes.pack_qkv._match", return_value=None):
        export_model(folder, paths["apart"], options)
    return paths


def decode(model: SparseModel, ids: np.ndarray) -> tuple[float, list[int]]:
    """Return seconds per token, and the tokens."""
    stream = model.stream([ids.tolist()], max_new_tokens=_TOKENS + 1)
    tokens = [int(next(stream)[0])]
    began = time.perf_counter()
    tokens += [int(row[0]) for row in stream]
    return (time.perf_counter() - began) / max(len(tokens) - 1, 1), tokens


def prefill(model: SparseModel, ids: np.ndarray) -> float:
    """Return seconds for a prompt."""
    decoder = model.decoder(1, len(ids))
    began = time.perf_counter()
    decoder.prefill(ids[None], np.ones((1, len(ids)), np.int64))
    return time.perf_counter() - began


def said(name: str, packed: list[float], apart: list[float], unit: float) -> str:
    """Return a line: the median time, the median ratio and its quartiles."""
    ratios = sorted(a / p for a, p in zip(apart[_WARM:], packed[_WARM:], strict=True))
    quartiles = ", ".join(f"{ratios[len(ratios) * i // 4]:.3f}" for i in (1, 3))
    time_of = statistics.median(packed[_WARM:]) * unit
    return f"{name}: packed {time_of:.2f} ms, apart {statistics.median(ratios):.3f} [{quartiles}] times as long"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--weights", type=click.Choice(FORMATS), multiple=True, default=("i4",), show_default=True)
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=9, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/packed-qkv"), show_default=True)
def main(model_dir: Path, weights: tuple[str, ...], threads: tuple[int, ...], rounds: int, work: Path) -> None:
    """Compare both ways of exporting MODEL_DIR."""
    ids = np.random.default_rng(0).integers(3, 4000, _CONTEXT)
    for kind in weights:
        paths = both(model_dir, work, kind)
        for count in threads:
            models = {way: load(path, threads=count) for way, path in paths.items()}
            times: dict[str, list[float]] = {f"{what} {way}": [] for what in ("decode", "prefill") for way in models}
            tokens = {}
            for _ in range(rounds + _WARM):
                for way, model in models.items():
                    seconds, tokens[way] = decode(model, ids)
                    times[f"decode {way}"].append(seconds)
                    times[f"prefill {way}"].append(prefill(model, ids))
            same = "the same" if tokens["packed"] == tokens["apart"] else "OTHER"
            click.echo(f"{model_dir.name} {kind}, {count} threads, {rounds} rounds, {same} greedy tokens")
            for what in ("decode", "prefill"):
                click.echo("  " + said(what, times[f"{what} packed"], times[f"{what} apart"], 1e3))
            del models


if __name__ == "__main__":
    main()
