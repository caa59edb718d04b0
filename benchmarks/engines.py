"""Whole models, ours against other engines: one checkpoint, one process, engines in turns, medians of paired ratios.

    python benchmarks/random_checkpoint.py tinyllama out/tl
    prosparse-export out/tl out/tl-i4/m.onnx --weights i4
    prosparse-export out/tl out/tl-plain/m.onnx --plain --weights f32 --other-weights f32    # for OpenVINO
    python benchmarks/engines.py out/tl --ours out/tl-i4/m.onnx --plain out/tl-plain/m.onnx --work out/engines

Against i4: MatMulNBits of 4 bits in onnxruntime, driven by onnxruntime-genai (which asks for the logits of every
position of a prompt) and by our own loop (which asks for the last), llama.cpp Q4_0, OpenVINO int4. Against i4i8 the
same, with down_proj in 8 bits in onnxruntime. Against i8: 8 bits, Q8_0, int8. Against f16: float32 products in
onnxruntime, and llama.cpp F16. What an engine needs is written into --work once and used again. An engine whose
package is missing is left out, and said so. All of them need gguf, llama-cpp-python, openvino and onnxruntime-genai.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import click
import numpy as np
import onnxruntime
from engines_ort import GenAi, write_dense
from engines_ours import Ours

from graph_passes import is_quantized
from prosparse_export.artifact.writer import read_manifest
from prosparse_export.runtime.operator_library import library_info

_PAUSE = 0.05  # seconds between engines: threads of the one before stop spinning


class Engine(Protocol):
    """What is timed."""

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Begin a text."""

    def decode(self, ids: np.ndarray) -> None:
        """Take tokens one by one."""


@dataclass(frozen=True)
class Loaded:
    """An engine with what loading it took."""

    name: str
    engine: Engine
    load_seconds: float
    resident_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Row:
    """One engine in one workload.

    Attributes:
        tokens_per_second: median over rounds.
        ratio: its time over ours, median over rounds; then the quartiles.
    """

    weights: str
    threads: int
    workload: str
    engine: str
    tokens_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float


def resident() -> int:
    """Return this process's resident bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def size(path: Path) -> int:
    """Return the bytes of a model: one file, or weights beside a graph."""
    files = [path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files if file.is_file())


def candidates(
    weights: str, checkpoint: Path, ours: Path, plain: Path | None, work: Path, without: tuple[str, ...]
) -> dict[str, Path]:
    """Write what the engines need; return their models by name, ours first, those `without` a use left out."""

    def wanted(name: str) -> bool:
        return not name.startswith(without or ("-",))

    result = {name: ours for name in ("ours", "ours, dense") if wanted(name)}
    folder = work / f"ort-{weights}"
    if wanted("onnxruntime, our loop") or wanted("onnxruntime-genai"):
        dense = folder / "model.onnx" if folder.is_dir() else write_dense(ours, folder)
        if wanted("onnxruntime, our loop"):
            result["onnxruntime, our loop"] = dense
        try:
            if wanted("onnxruntime-genai"):
                import onnxruntime_genai  # noqa: F401

                result["onnxruntime-genai"] = dense
        except ImportError as error:
            click.echo(f"left out: onnxruntime-genai: {error}", err=True)
    kind = {"i4": "Q4_0", "i4i8": "Q4_0", "i8": "Q8_0", "f16": "F16"}[weights]
    try:
        if wanted(f"llama.cpp {kind}"):
            import llama_cpp  # noqa: F401
            from engines_llama import write_gguf

            path = work / f"{kind}.gguf"
            result[f"llama.cpp {kind}"] = path if path.is_file() else write_gguf(checkpoint, path, kind)
    except (ImportError, OSError) as error:
        click.echo(f"left out: llama.cpp: {error}", err=True)
    if plain is not None and is_quantized(weights) and wanted("OpenVINO"):
        try:
            from engines_openvino import write_openvino

            path = work / f"openvino-{weights}.xml"
            bits = int(weights[1])
            result[f"OpenVINO int{bits}"] = path if path.is_file() else write_openvino(plain, path, bits)
        except ImportError as error:
            click.echo(f"left out: OpenVINO: {error}", err=True)
    return result


def opened(name: str, path: Path, threads: int, context: int, *, llama_repacked: bool) -> Loaded:
    """Load an engine."""
    makers: dict[str, Callable[[], Engine]] = {
        "ours": lambda: Ours(path, threads),
        "ours, dense": lambda: Ours(path, threads, dense=True),
        "onnxruntime, our loop": lambda: Ours(path, threads, library=False),
    }
    if name == "onnxruntime-genai":
        makers[name] = lambda: GenAi(path.parent, threads)
    elif name.startswith("llama.cpp"):
        from engines_llama import LlamaCpp

        makers[name] = lambda: LlamaCpp(path, threads, context, repacked=llama_repacked)
    elif name.startswith("OpenVINO"):
        from engines_openvino import OpenVino

        makers[name] = lambda: OpenVino(path, threads)
    gc.collect()
    before, began = resident(), time.perf_counter()
    engine = makers[name]()
    engine.prefill(np.arange(3, 11), 16)  # some read their weights at the first run only
    return Loaded(name, engine, time.perf_counter() - began, resident() - before, size(path))


def in_turns(engines: list[Loaded], run: Callable[[Engine, int], None], rounds: int) -> list[list[float]]:
    """Return seconds by engine and round; one round before does not count."""
    times: list[list[float]] = [[] for _ in engines]
    for number in range(rounds + 1):
        for loaded, own in zip(engines, times, strict=True):
            time.sleep(_PAUSE)
            began = time.perf_counter()
            run(loaded.engine, number)
            own.append(time.perf_counter() - began)
    return [own[1:] for own in times]


def rows(
    weights: str, threads: int, workload: str, count: int, engines: list[Loaded], times: list[list[float]]
) -> list[Row]:
    """Summarize; ``count`` tokens a round."""
    result = []
    for loaded, own in zip(engines, times, strict=True):
        ratios = sorted(other / ours for other, ours in zip(own, times[0], strict=True))
        quarter = len(ratios) // 4
        result.append(
            Row(
                weights,
                threads,
                workload,
                loaded.name,
                count / statistics.median(own),
                statistics.median(ratios),
                ratios[quarter],
                ratios[-1 - quarter],
            )
        )
    return result


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--ours", "artifacts", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--plain", type=click.Path(path_type=Path), help="The plain float32 artifact, for OpenVINO.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/engines"), show_default=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--context", type=int, default=128, show_default=True, help="Tokens before decode.")
@click.option("--tokens", type=int, default=8, show_default=True, help="Decoded in a round.")
@click.option("--prefill", type=int, multiple=True, default=(128, 512), show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option("--without", multiple=True, help="Engines to leave out, by the beginning of their names.")
@click.option(
    "--llama-repacked/--llama-as-stored",
    default=True,
    help="llama.cpp's weights in its own order for this processor, or as in the file: where the former crashes.",
)
@click.option("--prepare", is_flag=True, help="Write the engines' models and stop.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    checkpoint: Path,
    artifacts: tuple[Path, ...],
    plain: Path | None,
    work: Path,
    threads: tuple[int, ...],
    context: int,
    tokens: int,
    prefill: tuple[int, ...],
    rounds: int,
    without: tuple[str, ...],
    llama_repacked: bool,
    prepare: bool,
    json_file: Path | None,
) -> None:
    """Parse, prepare, time, print."""
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    total = context + tokens * (rounds + 1)
    ids = np.random.default_rng(1).integers(3, vocabulary, max(total, *prefill, context))
    description = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in description if "model name" in line)
    click.echo(f"{cpu}, {os.cpu_count()} cores, ISA {library_info().isa_used}, onnxruntime {onnxruntime.__version__}")
    found: list[Row] = []
    for ours in artifacts:
        weights = str(read_manifest(ours)["weight_format"])
        models = candidates(weights, checkpoint, ours, plain, work, without)
        if prepare:
            click.echo("\n".join(map(str, models.values())))
            continue
        for count in threads:
            longest = max(total, *prefill) + 8
            engines = [
                opened(name, path, count, longest, llama_repacked=llama_repacked) for name, path in models.items()
            ]
            for loaded in engines:
                click.echo(
                    f"{weights} {count}T {loaded.name:22} load {loaded.load_seconds:6.2f} s,"
                    f" resident {loaded.resident_bytes / 1e6:7.0f} MB, files {loaded.file_bytes / 1e6:7.0f} MB"
                )
            for loaded in engines:
                loaded.engine.prefill(ids[:context], total)

            def step(engine: Engine, number: int) -> None:
                engine.decode(ids[context + number * tokens : context + (number + 1) * tokens])

            new = rows(weights, count, f"decode at {context}", tokens, engines, in_turns(engines, step, rounds))
            for length in prefill:

                def begin(engine: Engine, number: int, length: int = length) -> None:
                    engine.prefill(ids[:length], length)

                times = in_turns(engines, begin, max(3, rounds // 3))
                new += rows(weights, count, f"prefill of {length}", length, engines, times)
            for row in new:
                click.echo(
                    f"{row.weights} {row.threads}T {row.workload:15} {row.engine:22}{row.tokens_per_second:9.2f}"
                    f" tokens/s  x{row.ratio:5.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
                )
            found += new
            del engines
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
