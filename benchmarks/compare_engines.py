"""Whole models, ours against other engines: one checkpoint, one process, engines in turns, medians of paired ratios.

    python benchmarks/random_checkpoint.py tinyllama out/tl
    prosparse-export out/tl out/tl-i4/m.onnx --weights i4
    prosparse-export out/tl out/tl-std/m.onnx --decomposed --weights f32 --other-weights f32    # for OpenVINO
    python benchmarks/compare_engines.py out/tl --ours out/tl-i4/m.onnx --decomposed out/tl-std/m.onnx

Peers of i4: MatMulNBits with 4 bits in onnxruntime, driven by onnxruntime-genai (which computes the logits of every
position of a prompt) and by our decode loop (which computes the last position's), llama.cpp Q4_0, OpenVINO int4. Peers
of i4i8: the same, with down_proj in 8 bits in onnxruntime. Peers of i8: 8 bits, Q8_0, int8. Peers of f16: float32
MatMul in onnxruntime, llama.cpp F16. Models for the other engines are written into --work once and reused. An engine
whose package is not installed is skipped with a message. All engines: pip install gguf llama-cpp-python openvino
onnxruntime-genai.
"""

from __future__ import annotations

import datetime
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from common import in_turns, machine, paired_ratio
from engines import Engine
from engines.onnxruntime_dense import GenAi, write_dense
from engines.ours import Ours

from graph_passes import is_quantized
from prosparse_export.artifact.writer import read_manifest

_PAUSE = 0.05  # seconds between engines: threads of the one before stop spinning


@dataclass(frozen=True)
class Loaded:
    """An engine, and what loading it took."""

    name: str
    engine: Engine
    load_seconds: float
    resident_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Row:
    """One engine in one workload.

    Attributes:
        phase: decode or prefill.
        context: tokens before the decode steps, or the prompt's length.
        sparsity: activation sparsity that the checkpoint was made with, 0 to 1, or None.
        tokens_per_second: median over rounds.
        ratio: its time over ours, median over rounds.
        ratio_low: lower quartile.
        ratio_high: upper quartile.
    """

    model: str
    weights: str
    threads: int
    phase: str
    context: int
    sparsity: float | None
    engine: str
    tokens_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        ids: token ids, enough for every phase.
        context: tokens before decode.
        tokens: decode steps per round.
        prefill: prompt lengths.
        rounds: rounds that count.
    """

    ids: np.ndarray
    context: int
    tokens: int
    prefill: tuple[int, ...]
    rounds: int

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache must hold in decode."""
        return self.context + self.tokens * (self.rounds + 1)


def resident() -> int:
    """Return this process's resident bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def size(path: Path) -> int:
    """Return the bytes of a model: one file, or weights beside a graph."""
    files = [path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files if file.is_file())


def candidates(
    weights: str, checkpoint: Path, ours: Path, decomposed: Path | None, work: Path, without: tuple[str, ...]
) -> dict[str, Path]:
    """Write the models that the engines need; return their paths by engine, ours first."""

    def wanted(name: str) -> bool:
        return not name.startswith(without or ("-",))

    result = {name: ours for name in ("ours", "ours, dense baseline") if wanted(name)}
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
            click.echo(f"skipped: onnxruntime-genai: {error}", err=True)
    kind = {"i4": "Q4_0", "i4i8": "Q4_0", "i8": "Q8_0", "f16": "F16"}[weights]
    try:
        if wanted(f"llama.cpp {kind}"):
            import llama_cpp  # noqa: F401
            from engines.llama_cpp import write_gguf

            path = work / f"{kind}.gguf"
            result[f"llama.cpp {kind}"] = path if path.is_file() else write_gguf(checkpoint, path, kind)
    except (ImportError, OSError) as error:
        click.echo(f"skipped: llama.cpp: {error}", err=True)
    if decomposed is not None and is_quantized(weights) and wanted("OpenVINO"):
        try:
            from engines.openvino import write_openvino

            path = work / f"openvino-{weights}.xml"
            bits = int(weights[1])
            result[f"OpenVINO int{bits}"] = path if path.is_file() else write_openvino(decomposed, path, bits)
        except ImportError as error:
            click.echo(f"skipped: OpenVINO: {error}", err=True)
    return result


def opened(name: str, path: Path, threads: int, context: int, *, llama_repacked: bool) -> Loaded:
    """Load an engine."""
    makers: dict[str, Callable[[], Engine]] = {
        "ours": lambda: Ours(path, threads),
        "ours, dense baseline": lambda: Ours(path, threads, dense=True),
        "onnxruntime, our loop": lambda: Ours(path, threads, library=False),
    }
    if name == "onnxruntime-genai":
        makers[name] = lambda: GenAi(path.parent, threads)
    elif name.startswith("llama.cpp"):
        from engines.llama_cpp import LlamaCpp

        makers[name] = lambda: LlamaCpp(path, threads, context, repacked=llama_repacked)
    elif name.startswith("OpenVINO"):
        from engines.openvino import OpenVino

        makers[name] = lambda: OpenVino(path, threads)
    gc.collect()
    before, began = resident(), time.perf_counter()
    engine = makers[name]()
    engine.prefill(np.arange(3, 11), 16)  # some read their weights in the first run
    return Loaded(name, engine, time.perf_counter() - began, resident() - before, size(path))


def timed(engines: list[Loaded], workload: Workload) -> dict[tuple[str, int, int], dict[str, list[float]]]:
    """Return seconds by (phase, context, tokens per round), engine and round."""
    ids, context, count = workload.ids, workload.context, workload.tokens
    for loaded in engines:
        loaded.engine.prefill(ids[:context], workload.capacity)
    position = dict.fromkeys((loaded.name for loaded in engines), context)

    def step(loaded: Loaded) -> None:
        begin = position[loaded.name]
        position[loaded.name] = begin + count
        loaded.engine.decode(ids[begin : begin + count])

    steps = {loaded.name: lambda loaded=loaded: step(loaded) for loaded in engines}
    result = {("decode", context, count): in_turns(steps, workload.rounds, pause=_PAUSE)}
    for length in workload.prefill:
        prompts = {
            loaded.name: lambda loaded=loaded, length=length: loaded.engine.prefill(ids[:length], length)
            for loaded in engines
        }
        result["prefill", length, length] = in_turns(prompts, max(3, workload.rounds // 3), pause=_PAUSE)
    return result


def measure(
    artifact: Path, models: dict[str, Path], checkpoint: Path, threads: int, workload: Workload, llama_repacked: bool
) -> list[Row]:
    """Load the engines, time them in turns, print and return a row for each engine and workload."""
    weights = str(read_manifest(artifact)["weight_format"])
    made = checkpoint / "random_checkpoint.json"
    by_layer = json.loads(made.read_text())["sparsity"] if made.is_file() else []
    sparsity = statistics.fmean(by_layer) if by_layer else None
    longest = max(workload.capacity, *workload.prefill) + 8
    engines = [opened(name, path, threads, longest, llama_repacked=llama_repacked) for name, path in models.items()]
    for loaded in engines:
        click.echo(
            f"{weights} {threads}T {loaded.name:22} load {loaded.load_seconds:6.2f} s,"
            f" resident {loaded.resident_bytes / 1e6:7.0f} MB, files {loaded.file_bytes / 1e6:7.0f} MB"
        )
    rows = []
    for (phase, context, count), times in timed(engines, workload).items():
        ours = next(iter(times.values()))
        for name, seconds in times.items():
            ratio, speed = paired_ratio(seconds, ours), count / statistics.median(seconds)
            rows.append(
                Row(
                    checkpoint.name, weights, threads, phase, context, sparsity, name, speed,
                    ratio.median, ratio.low, ratio.high,
                )
            )  # fmt: skip
            click.echo(f"{weights} {threads}T {phase:7} {context:5} {name:22}{speed:9.2f} tokens/s  {ratio}")
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=f"\b\n{__doc__}")
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--ours", "artifacts", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--decomposed", type=click.Path(path_type=Path), help="Decomposed float32 artifact, for OpenVINO.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/engines"), show_default=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--context", type=int, default=128, show_default=True, help="Tokens before decode.")
@click.option("--tokens", type=int, default=8, show_default=True, help="Decode steps per round.")
@click.option("--prefill", type=int, multiple=True, default=(128, 512), show_default=True, help="Prompt lengths.")
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option("--without", multiple=True, help="Skip engines whose names begin so.")
@click.option(
    "--llama-repacked/--llama-as-stored",
    default=True,
    help="Repack llama.cpp's weights for this processor, or leave them as stored where repacking crashes.",
)
@click.option("--prepare", is_flag=True, help="Write the engines' models and stop.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the results as JSON.")
def main(
    checkpoint: Path,
    artifacts: tuple[Path, ...],
    decomposed: Path | None,
    work: Path,
    threads: tuple[int, ...],
    context: int,
    tokens: int,
    prefill: tuple[int, ...],
    rounds: int,
    without: tuple[str, ...],
    llama_repacked: bool,
    prepare: bool,
    output: Path | None,
) -> None:
    """Parse, prepare, time, print."""
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    needed = max(context + tokens * (rounds + 1), *prefill)
    ids = np.random.default_rng(1).integers(3, vocabulary, needed)
    about = machine()
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    rows: list[Row] = []
    for artifact in artifacts:
        weights = str(read_manifest(artifact)["weight_format"])
        models = candidates(weights, checkpoint, artifact, decomposed, work, without)
        if prepare:
            click.echo("\n".join(map(str, models.values())))
            continue
        for count in threads:
            workload = Workload(ids, context, tokens, prefill, rounds)
            rows += measure(artifact, models, checkpoint, count, workload, llama_repacked)
            gc.collect()
    if output is not None:
        today = datetime.date.today().isoformat()
        command = " ".join(["python", "benchmarks/compare_engines.py", *sys.argv[1:]])
        document = {"machine": about, "date": today, "command": command, "runs": [asdict(row) for row in rows]}
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
