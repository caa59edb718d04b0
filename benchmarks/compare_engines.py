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
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import help_text, in_turns, machine, paired_ratio
from engines.load import Loaded, candidates, opened
from measurements import add_session

from prosparse_export.artifact.manifest import require_manifest

Run = dict[str, Any]
_PAUSE = 0.05  # seconds between engines: threads of the one before stop spinning


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
) -> tuple[list[Run], list[Run]]:
    """Load the engines, time them in turns, print; return speed and memory as `measurements` stores them."""
    manifest = require_manifest(artifact)
    weights = str(manifest.weight_format)
    made = json.loads((checkpoint / "random_checkpoint.json").read_text())
    model = {"model": made["shape"], "layers": made["layers"], "weights": weights, "threads": threads}
    if manifest.accuracy_level == 4:
        model["accuracy_level"] = 4
    if manifest.kv_cache is not None:
        model["kv_cache"] = manifest.kv_cache.format
    longest = max(workload.capacity, *workload.prefill) + 8
    engines = [opened(name, path, threads, longest, llama_repacked=llama_repacked) for name, path in models.items()]
    memory: list[Run] = []
    for loaded in engines:
        megabytes = {
            "file_megabytes": round(loaded.file_bytes / 1e6),
            "resident_megabytes": round(loaded.resident_bytes / 1e6),
        }
        if loaded.name not in ("dense baseline", "onnxruntime"):  # ours and genai's files again
            memory.append({**model, "engine": loaded.name, **megabytes})
        click.echo(f"{weights} {threads}T {loaded.name:18} load {loaded.load_seconds:6.2f} s, {megabytes}")
    sparsity = round(statistics.fmean(made["sparsity"]), 2)
    speed: list[Run] = []
    for (phase, context, count), times in timed(engines, workload).items():
        for name, seconds in times.items():
            ratio = paired_ratio(seconds, next(iter(times.values())))
            rate = count / statistics.median(seconds)
            speed.append(
                {
                    **model,
                    "phase": phase,
                    "context": context,
                    "sparsity": sparsity,
                    "engine": name,
                    "tokens_per_second": {"median": round(rate, 2)},
                    "ratio": {"median": round(ratio.median, 2), "q1": round(ratio.low, 2), "q3": round(ratio.high, 2)},
                }
            )
            click.echo(f"{weights} {threads}T {phase:7} {context:5} {name:18}{rate:9.2f} tokens/s  {ratio}")
    return speed, memory


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--ours", "artifacts", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--decomposed", type=click.Path(path_type=Path), help="Decomposed float32 artifact, for OpenVINO.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder for the other engines' models.  [default: out/engines/NAME of the checkpoint]",
)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--context", type=int, default=128, show_default=True, help="Tokens in the cache.")
@click.option("--tokens", type=int, default=8, show_default=True, help="Decode steps per round.")
@click.option("--prefill", type=int, multiple=True, default=(128, 512), show_default=True, help="Prompt lengths.")
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option("--without", multiple=True, help="Engines to skip, by name.")
@click.option(
    "--llama-repacked/--llama-as-stored",
    default=True,
    help="Repack llama.cpp's weights for this processor, or leave them as stored where repacking crashes.",
)
@click.option("--prepare", is_flag=True, help="Write the engines' models and stop.")
@click.option("--record", metavar="MACHINE", help="Put the results into benchmarks/results/MACHINE.json.")
def main(
    checkpoint: Path,
    artifacts: tuple[Path, ...],
    decomposed: Path | None,
    work: Path | None,
    threads: tuple[int, ...],
    context: int,
    tokens: int,
    prefill: tuple[int, ...],
    rounds: int,
    without: tuple[str, ...],
    llama_repacked: bool,
    prepare: bool,
    record: str | None,
) -> None:
    """Parse, prepare, time, print."""
    work = work or Path("out/engines") / checkpoint.name
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    needed = max(context + tokens * (rounds + 1), *prefill)
    ids = np.random.default_rng(1).integers(3, vocabulary, needed)
    about = machine()
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    speed: list[Run] = []
    memory: list[Run] = []
    for artifact in artifacts:
        weights = str(require_manifest(artifact).weight_format)
        models = candidates(weights, checkpoint, artifact, decomposed, work, without)
        if prepare:
            click.echo("\n".join(map(str, models.values())))
            continue
        for count in threads:
            workload = Workload(ids, context, tokens, prefill, rounds)
            found = measure(artifact, models, checkpoint, count, workload, llama_repacked)
            speed += found[0]
            memory += found[1]
            gc.collect()
    if record is not None:
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--record", record)]
        session = {
            "command": shlex.join(["python", "benchmarks/compare_engines.py", *arguments]),
            "date": datetime.date.today().isoformat(),
        }
        add_session(record, {"suite": "engines", **session, "runs": speed})
        add_session(record, {"suite": "memory", **session, "runs": memory})


if __name__ == "__main__":
    main()
