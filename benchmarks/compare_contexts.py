"""Decode speed, time to the first token, and memory against the context, ours with both KV caches and other engines.

    python benchmarks/random_checkpoint.py tinyllama out/tl
    prosparse-export out/tl out/tl-i4/m.onnx --weights i4
    prosparse-export out/tl out/tl-i4-i8/m.onnx --weights i4 --kv-cache i8
    python benchmarks/compare_contexts.py out/tl --ours out/tl-i4/m.onnx --ours-i8 out/tl-i4-i8/m.onnx

One process; in decode, engines take turns, and ratios are medians of paired rounds against ours with an 8-bit cache.
Caches: onnxruntime-genai float32, llama.cpp float16 and q8_0, OpenVINO its own. Resident memory is an engine's own:
what the process grew by while it was loaded and read its prompts; peak is the most that it grew by in the prompt.
Models for the other engines are written into --work once and reused (compare_engines.py writes the same).
"""

from __future__ import annotations

import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import help_text, in_turns, machine, paired_ratio
from engines.load import Loaded, candidates, opened, peak, reset_peak, resident
from measurements import add_session

from prosparse_export.artifact.manifest import require_manifest

EIGHT_BITS, LLAMA_EIGHT_BITS = "ours, 8-bit cache", "llama.cpp, q8_0 cache"
_PAUSE = 0.05  # seconds between engines: threads of the one before stop spinning


def models_of(
    checkpoint: Path, ours: Path, ours_i8: Path, decomposed: Path | None, work: Path, without: Sequence[str]
) -> dict[str, Path]:
    """Return the engines' models by name, ours with an 8-bit cache first."""
    weights = str(require_manifest(ours).weight_format)
    skipped = (*without, "dense baseline", "onnxruntime")
    found = {EIGHT_BITS: ours_i8, **candidates(weights, checkpoint, ours, decomposed, work, skipped)}
    if "llama.cpp" in found:
        found[LLAMA_EIGHT_BITS] = found["llama.cpp"]
    return {name: path for name, path in found.items() if name not in without}


@dataclass
class FirstToken:
    """An engine's prompt.

    Attributes:
        seconds: until its first token.
        peak: bytes that the engine takes while it reads the prompt, at most.
        memory: bytes that it takes afterwards.
    """

    seconds: float
    peak: int
    memory: int


def first_tokens(
    engines: Sequence[Loaded], ids: np.ndarray, capacity: int, memory: dict[str, int]
) -> dict[str, FirstToken]:
    """Run a prompt in every engine; add to ``memory`` what each grew by, in bytes."""
    found = {}
    for loaded in engines:
        reset_peak()
        before, began = resident(), time.perf_counter()
        loaded.engine.prefill(ids, capacity)
        seconds = time.perf_counter() - began
        most = memory[loaded.name] + peak() - before
        memory[loaded.name] += resident() - before
        found[loaded.name] = FirstToken(seconds, most, memory[loaded.name])
    return found


def decode(
    engines: Sequence[Loaded], ids: np.ndarray, context: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of ``tokens`` decode steps after ``context`` tokens, by engine and round."""
    position = dict.fromkeys((loaded.name for loaded in engines), context)

    def step(loaded: Loaded) -> None:
        begin = position[loaded.name]
        position[loaded.name] = begin + tokens
        loaded.engine.decode(ids[begin : begin + tokens])

    return in_turns({loaded.name: lambda loaded=loaded: step(loaded) for loaded in engines}, rounds, pause=_PAUSE)


def runs_of(
    model: Mapping[str, Any],
    context: int,
    tokens: int,
    times: Mapping[str, Sequence[float]],
    first: Mapping[str, FirstToken],
) -> list[dict[str, Any]]:
    """Print one context's results and return them as `measurements` stores them."""
    ours = times[EIGHT_BITS]
    runs = []
    for name, seconds in times.items():
        ratio, rate = paired_ratio(seconds, ours), tokens / statistics.median(seconds)
        prompt = first[name]
        megabytes, most = round(prompt.memory / 1e6), round(prompt.peak / 1e6)
        click.echo(
            f"{context:6} tokens  {name:22}{rate:8.2f} tokens/s  {ratio}  "
            f"first token {prompt.seconds:7.2f} s  {megabytes:6} MB, peak {most:6} MB"
        )
        runs.append(
            {
                **model,
                "phase": "decode",
                "context": context,
                "engine": name,
                "tokens_per_second": {"median": round(rate, 2)},
                "ratio": {"median": round(ratio.median, 2), "q1": round(ratio.low, 2), "q3": round(ratio.high, 2)},
                "first_token_seconds": round(prompt.seconds, 2),
                "resident_megabytes": megabytes,
                "peak_megabytes": most,
            }
        )
    return runs


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--ours", type=click.Path(path_type=Path), required=True, help="Artifact with a float32 KV cache.")
@click.option("--ours-i8", type=click.Path(path_type=Path), required=True, help="The same with --kv-cache i8.")
@click.option("--decomposed", type=click.Path(path_type=Path), help="Decomposed float32 artifact, for OpenVINO.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder for the other engines' models.  [default: out/engines/NAME of the checkpoint]",
)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--context", "contexts", type=int, multiple=True, default=(128, 1024, 3900), show_default=True)
@click.option("--tokens", type=int, default=4, show_default=True, help="Decode steps per round.")
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option("--without", multiple=True, help="Engines to skip, by name.")
@click.option("--llama-repacked/--llama-as-stored", default=True, help="As in compare_engines.py.")
@click.option("--record", metavar="MACHINE", help="Put the results into benchmarks/results/MACHINE.json.")
def main(
    checkpoint: Path,
    ours: Path,
    ours_i8: Path,
    decomposed: Path | None,
    work: Path | None,
    threads: int,
    contexts: tuple[int, ...],
    tokens: int,
    rounds: int,
    without: tuple[str, ...],
    llama_repacked: bool,
    record: str | None,
) -> None:
    """Parse, load, time, print."""
    work = work or Path("out/engines") / checkpoint.name
    work.mkdir(parents=True, exist_ok=True)
    made = json.loads((checkpoint / "random_checkpoint.json").read_text())
    weights = str(require_manifest(ours).weight_format)
    sparsity = round(statistics.fmean(made["sparsity"]), 2)
    model = {"model": made["shape"], "layers": made["layers"], "weights": weights, "threads": threads}
    model["sparsity"] = sparsity
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    room = tokens * (rounds + 1)
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(1).integers(3, vocabulary, max(contexts) + room)
    paths = models_of(checkpoint, ours, ours_i8, decomposed, work, without)
    engines = [opened(n, p, threads, max(contexts) + room + 8, llama_repacked=llama_repacked) for n, p in paths.items()]
    memory = {loaded.name: loaded.resident_bytes for loaded in engines}
    runs: list[dict[str, Any]] = []
    for context in sorted(contexts):
        first = first_tokens(engines, ids[:context], context + room, memory)
        times = decode(engines, ids, context, tokens, rounds)
        runs += runs_of(model, context, tokens, times, first)
    if record is not None:
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--record", record)]
        command = shlex.join(["python", "benchmarks/compare_contexts.py", *arguments])
        add_session(
            record, {"suite": "contexts", "command": command, "date": datetime.date.today().isoformat(), "runs": runs}
        )


if __name__ == "__main__":
    main()
