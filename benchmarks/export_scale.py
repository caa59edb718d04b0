r"""Time and memory of an export, in a separate process: what a large checkpoint needs.

    python benchmarks/random_checkpoint.py llama-2-7b out/random-7b --sparsity 0.89
    python benchmarks/export_scale.py out/random-7b out/7b-i4/m.onnx --weights i4
    python benchmarks/export_scale.py models/demo out/timed/m.onnx --against ../earlier --rounds 3

    python benchmarks/export_scale.py out/30-layers out/timed/m.onnx --weights i8 --against-model out/5-layers
    python benchmarks/export_scale.py out/smollm2/model out/timed/m.onnx --weights i4 --allow-dense \
        --against-builder GENAI/bin/python --against-optimum OPTIMUM/bin/python

With an --against option, exports take turns and only times are printed: by another checkout of the project; of another
model, writing apart; by onnxruntime-genai's model builder (int4) and by optimum-onnx (float32), each with the Python of
an environment that has it. Checkouts use the operator library of this environment unless PROSPARSE_OPS_LIBRARY and
EARLIER_OPS_LIBRARY name one each.
Anonymous memory (RssAnon) is what the export holds; pages of mapped files (RssFile) go when others need room. Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

EVERY = 0.02  # seconds between samples


@dataclass(frozen=True)
class Run:
    """A command that exports a model.

    Attributes:
        command: with absolute paths.
        output: the folder that it fills.
        tree: the checkout to run; None for another project's exporter.
        library: the operator library, if not the environment's.
    """

    command: list[str]
    output: Path
    tree: Path | None = None
    library: str | None = None

    def seconds(self, *, without: str = "") -> float:
        """Run the command and return the time it took, without that of the stage ``without``."""
        shutil.rmtree(self.output, ignore_errors=True)
        environment = dict(os.environ)
        if self.tree is not None:  # -m imports from the working directory first
            environment["PYTHONPATH"] = os.pathsep.join([str(self.tree), str(self.tree / "models")])
        if self.library is not None:
            environment["PROSPARSE_OPS_LIBRARY"] = self.library
        began = time.perf_counter()
        with subprocess.Popen(
            self.command, env=environment, cwd=self.tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            lines = [(time.perf_counter() - began, line) for line in process.stdout]
        total = time.perf_counter() - began
        if process.returncode:
            raise SystemExit("".join(line for _, line in lines))
        stages = [(at, line.partition("] ")[2].split()[0].rstrip(",")) for at, line in lines if line.startswith("[")]
        ends = [at for at, _ in [*stages, (total, "")][1:]]
        return total - sum(end - at for (at, name), end in zip(stages, ends, strict=True) if name == without)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model_dir", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1)
@click.option("--against", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another checkout.")
@click.option("--against-model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another model.")
@click.option("--against-builder", metavar="PYTHON", help="With onnxruntime-genai.")
@click.option("--against-optimum", metavar="PYTHON", help="With optimum-onnx.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="With an --against option.")
def main(
    model_dir: Path,
    output: Path,
    options: tuple[str, ...],
    against: Path | None,
    against_model: Path | None,
    against_builder: str | None,
    against_optimum: str | None,
    rounds: int,
) -> None:
    """Export MODEL_DIR to OUTPUT, with OPTIONS of prosparse-export, and print what it took."""
    folder, here, model = output.resolve().parent, Path(__file__).resolve().parents[1], model_dir.resolve()

    def ours(name: str, model: Path, tree: Path, library: str | None = None) -> Run:
        return Run(command_for(model, folder / name / output.name, options), folder / name, tree, library)

    others: dict[str, Run] = {}
    if against is not None:
        others["earlier"] = ours("earlier", model, against.resolve(), os.environ.get("EARLIER_OPS_LIBRARY"))
    if against_model is not None:
        others["model"] = ours("model", against_model.resolve(), here)
    if against_builder is not None:
        arguments = ["-i", str(model), "-o", str(folder / "builder"), "-c", str(folder / "cache")]
        builder = [against_builder, "-m", "onnxruntime_genai.models.builder", *arguments, "-p", "int4", "-e", "cpu"]
        others["builder"] = Run(builder, folder / "builder")
    if against_optimum is not None:
        arguments = ["--model", str(model), "--task", "text-generation-with-past", str(folder / "optimum")]
        others["optimum"] = Run([against_optimum, "-m", "optimum.exporters.onnx", *arguments], folder / "optimum")
    if others:
        compare({"here": ours("here", model, here), **others}, rounds, "write" if against_model is not None else "")
    else:
        measure(command_for(model_dir, output, options), output)


def command_for(model_dir: Path, output: Path, options: tuple[str, ...]) -> list[str]:
    """Return the command that exports a model."""
    return [sys.executable, "-m", "prosparse_export", "export", str(model_dir), str(output), "--overwrite", *options]


def compare(runs: dict[str, Run], rounds: int, without: str) -> None:
    """Time exports in turns and print medians and paired ratios, without the stage ``without``."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run.seconds(without=without))
            print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
    print(f"seconds{f' without {without}' if without else ''}, {rounds} rounds in turns: median [least, most]")
    for name, seconds in times.items():
        line = f"{name:8} {median(seconds):7.1f} s  [{min(seconds):.1f}, {max(seconds):.1f}]"
        if name != "here":
            ratios = [other / ours for ours, other in zip(times["here"], seconds, strict=True)]
            line += f"  {median(ratios):5.2f} times here [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line)


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
                name = line.partition("] ")[2].split()[0].rstrip(",")
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
