"""Time and memory of an export, in a separate process: what a large checkpoint needs.

    python benchmarks/random_checkpoint.py llama-2-7b out/random-7b --sparsity 0.89
    python benchmarks/export_scale.py out/random-7b out/7b-i4/m.onnx --weights i4
    python benchmarks/export_scale.py models/demo out/timed/m.onnx --against ../earlier --rounds 3

With --against, another checkout of the project exports the same model in turns, and only times are printed. Both use
the operator library of this environment unless PROSPARSE_OPS_LIBRARY and EARLIER_OPS_LIBRARY name one each.
Anonymous memory (RssAnon) is what the export holds; pages of mapped files (RssFile) go when others need room. Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import click

EVERY = 0.02  # seconds between samples


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model_dir", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1)
@click.option("--against", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another checkout.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="With --against.")
def main(model_dir: Path, output: Path, options: tuple[str, ...], against: Path | None, rounds: int) -> None:
    """Export MODEL_DIR to OUTPUT, with OPTIONS of prosparse-export, and print what it took."""
    if against is None:
        measure(command_for(model_dir, output, options), output)
    else:
        compare(model_dir, output, options, against, rounds)


def command_for(model_dir: Path, output: Path, options: tuple[str, ...]) -> list[str]:
    """Return the command that exports a model."""
    return [sys.executable, "-m", "prosparse_export", "export", str(model_dir), str(output), "--overwrite", *options]


def compare(model_dir: Path, output: Path, options: tuple[str, ...], against: Path, rounds: int) -> None:
    """Time exports by this checkout and by another one in turns, each into a folder of its own."""
    trees = {"here": Path(__file__).parents[1], "earlier": against}
    times: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "models")])}
            if name == "earlier" and (library := os.environ.get("EARLIER_OPS_LIBRARY")):
                environment["PROSPARSE_OPS_LIBRARY"] = library
            command = command_for(model_dir.resolve(), output.resolve().parent / name / output.name, options)
            began = time.perf_counter()  # -m imports from the working directory first
            result = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(result.stderr)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"{name:8} {median(seconds):7.1f} s  [{min(seconds):.1f}, {max(seconds):.1f}]")
    ratios = [before / now for now, before in zip(times["here"], times["earlier"], strict=True)]
    print(f"speedup  {median(ratios):7.2f}    [{min(ratios):.2f}, {max(ratios):.2f}], {rounds} rounds in turns")


def measure(command: list[str], output: Path) -> None:
    """Print the time and the peak memory of each stage of an export."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stages: list[tuple[float, str]] = []
    errors: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("["):
                name = line.partition("] ")[2].split()[0]
                if not stages or stages[-1][1] != name:
                    stages.append((time.perf_counter() - began, name))
            else:
                errors.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    peaks: dict[str, dict[str, int]] = {}
    while process.poll() is None:
        stage = stages[-1][1] if stages else "start"
        peak = peaks.setdefault(stage, {"RssAnon": 0, "RssFile": 0})
        for name, kib in memory(process.pid).items():
            peak[name] = max(peak[name], kib)
        time.sleep(EVERY)
    reader.join()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit("".join(errors))
    print(f"{'stage':10} {'seconds':>8} {'peak RssAnon':>13} {'peak RssFile':>13}")
    ends = [at for at, _ in stages[1:]] + [seconds]
    for (at, name), end in zip(stages, ends, strict=True):
        peak = peaks.get(name, {"RssAnon": 0, "RssFile": 0})
        print(f"{name:10} {end - at:8.1f} {peak['RssAnon'] / 2**20:9.2f} GiB {peak['RssFile'] / 2**20:9.2f} GiB")
    anonymous = max(peak["RssAnon"] for peak in peaks.values()) / 2**20
    size = sum(path.stat().st_size for path in output.parent.glob(f"{output.name}*")) / 1e9
    print(f"total {seconds:.1f} s, peak anonymous memory {anonymous:.2f} GiB, artifact {size:.2f} GB")


def memory(pid: int) -> dict[str, int]:
    """Return RssAnon and RssFile of a process in KiB; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}


if __name__ == "__main__":
    main()
