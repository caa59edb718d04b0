r"""Time and peak memory of `prosparse validate`, and of the three runs that it compares.

    python benchmarks/validate_cost.py models/demo
    python benchmarks/validate_cost.py MODEL_DIR --weights i4 --max-tokens 1024 --rounds 1
    python benchmarks/validate_cost.py LARGE --artifact OUT.onnx --low-memory --max-tokens 64 --greedy 0 \
        --step-tokens 4 --only validate --rounds 1

The runs by themselves are PyTorch and the artifact without and with the library, over the same windows and prompts; the
artifact also token by token and as a padded batch. Their logits are discarded. `validate` also compares, checks the
operators against float64, repeats runs and measures sparsity. Each part runs in its own process, in turns. Time
includes loading but not imports. Memory is the peak resident size, and the anonymous part of it, sampled 50 times a
second: the kernel can reclaim pages of mapped files. For integer formats, `validate` runs PyTorch a second time with
the stored weights, and that run counts too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np
import torch

from graph_passes import FFN_FORMATS, is_quantized
from prosparse_export import export_model
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.export import ExportOptions
from prosparse_export.export.load import load_model_folder
from prosparse_export.quiet import quiet
from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import default_text, tokenize
from prosparse_export.validation import ValidationOptions, validate
from prosparse_export.validation.comparison_text import plan_text
from prosparse_export.validation.exactness import generate_greedily, pad_left
from prosparse_export.validation.reference import torch_forward
from prosparse_models.loading.tokenizer import load_tokenizer

PARTS = ("PyTorch", "without library", "with library", "validate")


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", type=click.Choice(FFN_FORMATS), default="f32", show_default=True)
@click.option("--max-tokens", default=2048, show_default=True)
@click.option("--greedy", default=64, show_default=True, help="Tokens to generate per prompt.")
@click.option("--step-tokens", default=512, show_default=True, help="Tokens to decode.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--artifact", type=click.Path(exists=True, path_type=Path), help="Existing artifact, instead of an export."
)
@click.option("--low-memory", is_flag=True, help="Pass --low-memory to validate.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Part to measure. Repeatable.")
@click.option("--part", type=(click.Choice(PARTS), click.Path(path_type=Path)), hidden=True)
def main(
    model: Path,
    weights: str,
    max_tokens: int,
    greedy: int,
    step_tokens: int,
    rounds: int,
    threads: int,
    artifact: Path | None,
    low_memory: bool,
    only: tuple[str, ...],
    part: tuple[str, Path] | None,
) -> None:
    """Print time and peak memory of validating MODEL, and of its runs by themselves."""
    if part is not None:
        options = ValidationOptions(
            tokens=max_tokens, threads=threads, low_memory=low_memory, greedy=greedy, step_tokens=step_tokens
        )
        watch = _Anonymous()
        seconds = _run(part[0], model, part[1], options)
        click.echo(json.dumps({"seconds": seconds, "peak": _status("VmHWM"), "anonymous": watch.stop()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = artifact
        if path is None:
            path = export_model(model, Path(folder) / "m.onnx", ExportOptions(weights=weights)).path  # type: ignore[arg-type]
        weights = str(require_manifest(path).weight_format)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in only or PARTS}
        for _ in range(rounds):
            for name in found:
                command = [sys.executable, __file__, str(model), "--part", name, str(path)]
                command += ["--max-tokens", str(max_tokens), "--threads", str(threads)]
                command += ["--greedy", str(greedy), "--step-tokens", str(step_tokens)]
                command += ["--low-memory"] if low_memory else []
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found[name].append(json.loads(output.splitlines()[-1]))
    click.echo(f"{model}, weights {weights}, {max_tokens} tokens, {threads} threads, medians of {rounds}")
    click.echo("| part | s | peak MB | anonymous MB |\n|---|---|---|---|")
    for name, runs in found.items():
        times, peaks, own = ([r[key] for r in runs] for key in ("seconds", "peak", "anonymous"))
        click.echo(f"| {name} | {statistics.median(times):.2f} | {max(peaks) / 1e6:.0f} | {max(own) / 1e6:.0f} |")
    if not only:
        compare(found, 2 if is_quantized(weights) else 1)


def compare(found: dict[str, list[dict[str, float]]], torch_runs: int) -> None:
    """Print validate's time and memory as multiples of the separate runs'."""
    ratios = [
        whole["seconds"]
        / (torch_runs * found["PyTorch"][k]["seconds"] + sum(found[n][k]["seconds"] for n in PARTS[1:3]))
        for k, whole in enumerate(found["validate"])
    ]
    low, high = min(ratios), max(ratios)
    count = {1: "three", 2: "four"}[torch_runs]
    click.echo(f"validate's time: {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}] times the {count} runs'")
    peak = {name: max(r["peak"] for r in runs) for name, runs in found.items()}
    alone = max(peak[name] for name in PARTS[:3])
    click.echo(f"validate's memory: {peak['validate'] / alone:.2f} times the largest run's, {alone / 1e6:.0f} MB")


def _status(name: str) -> int:
    """Return a size of this process in bytes; getrusage would include the parent's, before exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"expected {name} in /proc/self/status: this benchmark needs Linux")


class _Anonymous(threading.Thread):
    """Samples this process's anonymous memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._end, self._peak = threading.Event(), 0
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.02):
            self._peak = max(self._peak, _status("RssAnon"))

    def stop(self) -> int:
        """Return the peak size in bytes."""
        self._end.set()
        self.join()
        return self._peak


def _run(name: str, folder: Path, path: Path, options: ValidationOptions) -> float:
    torch.set_num_threads(options.threads or 1)
    began = time.perf_counter()
    if name == "validate":
        result = validate(folder, path, options)
        if not result.passed:
            raise SystemExit("validate: failed")
        return time.perf_counter() - began
    documents = tokenize(load_tokenizer(folder), [("text", default_text())], options.tokens)
    text = plan_text(documents, options, None)
    cut, prompts = text.windows, text.prompts
    if name == "PyTorch":
        forward = torch_forward(load_model_folder(folder).model)
        with quiet(), torch.no_grad():
            for prompt in prompts:
                logits, cache = forward(prompt, None, True)
                for _ in range(options.greedy - 1):
                    logits, cache = forward(logits[-1:].argmax(-1).astype(np.int64), cache, True)
            for window in cut:
                forward(window.ids, None, False)
        return time.perf_counter() - began
    artifact = SparseModel.open(path, library=name == "with library", threads=options.threads)
    for prompt in prompts:
        generate_greedily(artifact, [prompt], options.greedy)
    for window in cut:
        artifact.forward(window.ids[None], np.ones((1, len(window.ids)), np.int64))
    cache, ids = None, cut[0].ids[: options.step_tokens]
    for i in range(len(ids)):
        cache = _step(artifact, ids, i, cache)
    generate_greedily(artifact, prompts, options.greedy)
    artifact.forward(*pad_left(prompts))
    return time.perf_counter() - began


def _step(artifact: SparseModel, ids: np.ndarray, i: int, cache: Cache | None) -> Cache:
    return artifact.forward(ids[None, i : i + 1], np.ones((1, i + 1), np.int64), cache)[1]


if __name__ == "__main__":
    main()
