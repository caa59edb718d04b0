"""What 8 and 4 bits cost in our format and in llama.cpp's, on the same token windows of any texts.

The float model is written as GGUF in float16 (gguf package) and quantized by llama.cpp's own `llama_model_quantize`,
without an importance matrix. Its float16 file must agree with PyTorch within what 16 bits explain, or llama.cpp's
graph is not this model and the run stops. llama.cpp's llama graph always uses SiLU: for other activations its rows are
left out. Every window is a sequence of its own; a window's first token has no prediction. ± is a standard error, from
the windows' values.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from domains import Domains, Figures, read_domains
from numpy.typing import NDArray

from prosparse_export.runtime.model import SparseModel

__all__ = ["Candidates", "compare_engines"]

_MATRICES = 7  # of a LLaMA layer
_LLAMA_TOKENS = 512  # of llama.cpp's context here


@dataclass(frozen=True)
class Candidates:
    """What to compare.

    Attributes:
        exports: "NAME: OPTIONS" of exports to make.
        artifacts: "NAME: PATH" of artifacts.
        matmulnbits: also run the exports' weights in onnxruntime's MatMulNBits, at accuracy levels 0 and 4.
        threads: intra-op threads.
    """

    exports: tuple[str, ...]
    artifacts: tuple[str, ...]
    matmulnbits: bool
    threads: int


def compare_engines(
    model: Path, files: tuple[Path, ...], windows: int, tokens: int, candidates: Candidates
) -> list[dict[str, object]]:
    """Print a table: file size, then perplexity, its change and KL divergence for each text; return the rows."""
    domains = Domains(model, read_domains(model, files, windows, tokens))
    names = [domain.name for domain in domains.domains]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as work:
        for name, size, figures in _runs(model, domains, Path(work), candidates):
            if not rows:
                click.echo(f"{model}: {windows} windows of {tokens} tokens of {', '.join(names)}")
                click.echo(f"| | file, MB | {' | '.join(f'{text}: perplexity | change | KL' for text in names)} |")
                click.echo("|---|---:|" + "---:|---:|---:|" * len(names))
                own = " | ".join(f"{figures[text].quality.reference_perplexity:.3f} | |" for text in names)
                click.echo(f"| PyTorch, float32 | | {own}")
            click.echo(_row(name, size, figures, names))
            rows.append({"name": name, "bytes": size, "texts": {text: asdict(f) for text, f in figures.items()}})
    return rows


def _row(name: str, size: int, figures: Mapping[str, Figures], names: list[str]) -> str:
    cells = []
    for text in names:
        found, q = figures[text], figures[text].quality
        change = f"{q.perplexity_increase:+.2%} ± {found.increase_error:.2%}"
        cells.append(f"{q.perplexity:.3f} | {change} | {q.kl_mean:.4f} ± {found.kl_error:.4f}")
    return f"| {name} | {size / 1e6:.1f} | {' | '.join(cells)} |"


Runs = Iterator[tuple[str, int, dict[str, Figures]]]


def _runs(model: Path, domains: Domains, work: Path, candidates: Candidates) -> Runs:
    threads = candidates.threads
    for artifact in candidates.artifacts:
        name, _, path = artifact.partition(":")
        yield _ours(name, Path(path.strip()), domains, threads)
    for export in candidates.exports:
        name, _, options = export.partition(":")
        folder = work / f"export-{name}"
        _export([str(model), str(folder / "m.onnx"), *shlex.split(options)])
        yield _ours(name, folder / "m.onnx", domains, threads)
        if candidates.matmulnbits and "--accuracy-level" not in options:
            yield from _matmulnbits(name, folder, domains, threads)
    if all(domain.windows.shape[1] <= _LLAMA_TOKENS for domain in domains.domains):
        yield from _llama_cpp(model, domains, work, threads)
    else:
        click.echo(f"llama.cpp left out: windows of more than {_LLAMA_TOKENS} tokens", err=True)


def _export(arguments: list[str]) -> None:
    from prosparse_export.cli.export import export_command

    export_command.main([*arguments, "--allow-dense", "-q"], standalone_mode=False)


def _ours(name: str, path: Path, domains: Domains, threads: int) -> tuple[str, int, dict[str, Figures]]:
    artifact = SparseModel.open(path, threads=threads)
    size = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())

    def logits(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return artifact.forward(ids[None], np.ones((1, len(ids)), np.int64))[0][0]

    return f"ours, {name}", size, domains.figures(name, logits)


def _matmulnbits(name: str, exported: Path, domains: Domains, threads: int) -> Runs:
    """Yield MatMulNBits with the weights of an export; down_proj of a sparse FFN is quantized again, along d_ff."""
    from engines.onnxruntime_dense import write_dense

    for level in (0, 4):
        path = write_dense(exported / "m.onnx", exported / f"matmulnbits-{level}", level)
        _, size, figures = _ours(name, path, domains, threads)
        yield f"MatMulNBits, {name}, accuracy level {level}", size, figures


def _llama_cpp(model: Path, domains: Domains, work: Path, threads: int) -> Runs:
    """Yield the float16 file, which must agree with PyTorch, then each quantized one."""
    config = json.loads((model / "config.json").read_text())
    if config.get("hidden_act", "silu") != "silu":
        click.echo(f"llama.cpp left out: its llama graph uses SiLU, this model {config['hidden_act']}", err=True)
        return
    try:
        import llama_cpp as _  # noqa: F401  (present?)
    except ImportError as error:
        click.echo(f"llama.cpp left out: {error}", err=True)
        return
    from engines.llama_cpp import FILE_TYPES, LlamaCpp, UnsupportedCheckpointError, quantize_gguf, write_gguf

    half = work / "f16.gguf"
    try:
        write_gguf(model, half, "F16")
    except UnsupportedCheckpointError as error:
        click.echo(f"llama.cpp left out: {error}", err=True)
        return
    bound = domains.half_precision_bound(_MATRICES * int(config["num_hidden_layers"]) + 1)
    for kind in ("F16", *FILE_TYPES):
        path = half if kind == "F16" else quantize_gguf(half, work / f"{kind}.gguf", kind)
        engine = LlamaCpp(path, threads, _LLAMA_TOKENS, repacked=False)
        figures = domains.figures(kind, engine.logits)
        engine.close()
        found = [f.quality.kl_mean for f in figures.values()]
        if kind == "F16" and not all(kl <= bound for kl in found):  # NaN is not
            got = ", ".join(f"{kl:.2e}" for kl in found)
            sys.exit(f"llama.cpp: F16: KL from PyTorch {got} nats, expected at most {bound:.2e}: another model")
        yield f"llama.cpp {kind}", path.stat().st_size, figures
        if kind != "F16":
            path.unlink()
