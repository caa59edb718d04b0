"""Two ONNX files of one model: greedy tokens, decode and prefill time, in turns in one process.

What does `prosparse optimize` gain on a third-party file?

    prosparse optimize int4/model.onnx out/i4i8/model.onnx --weights i4i8
    python benchmarks/compare_artifacts.py int4/model.onnx out/i4i8/model.onnx

What does one MatMul for q_proj, k_proj and v_proj gain? A is written first, with three:

    prosparse-export MODEL_DIR out/packed/m.onnx --weights i4
    python benchmarks/compare_artifacts.py out/separate/m.onnx out/packed/m.onnx --separate-qkv MODEL_DIR

Both files need a KV cache under the usual names. Prints how many greedy tokens agree, with the gap between the top two
logits where they differ, and A's time over B's: medians of paired ratios with quartiles.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from unittest import mock

import click
import numpy as np
import onnxruntime
from common import help_text, in_turns, machine, paired_ratio

import prosparse_export
from prosparse_export import ExportOptions, export_model
from prosparse_export.artifact.manifest import require_manifest


class Model:
    """One file, its session, its KV cache, and the greedy tokens so far."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        prosparse_export.register(options)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        config = path.parent / "genai_config.json"
        decoder = json.loads(config.read_text())["model"]["decoder"] if config.is_file() else {}
        self.head_dim = int(decoder.get("head_size", 0))  # for graphs whose cache has a dynamic last dimension
        self.reset([])

    def reset(self, prompt: list[int]) -> None:
        """Forget everything and run ``prompt``."""
        self.cache = {
            name: np.zeros((1, int(value.shape[1]), 0, self._width(value.shape[3])), np.float32)
            for name, value in self.inputs.items()
            if name.startswith("past_key_values.")
        }
        self.length, self.tokens, self.gaps = 0, [], []
        if prompt:
            self.run(prompt)

    def _width(self, dim: object) -> int:
        return dim if isinstance(dim, int) else self.head_dim

    def step(self) -> None:
        """Decode one token."""
        self.run(self.tokens[-1:])

    def run(self, ids: list[int]) -> None:
        """Run ``ids`` and append the next greedy token."""
        self.length += len(ids)
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, self.length), np.int64), **self.cache}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = np.arange(self.length - len(ids), self.length)[None]
        if "logits_to_keep" in self.inputs:
            feeds["logits_to_keep"] = np.ones(1, np.int64)
        outputs = dict(zip(self.outputs, self.session.run(None, feeds), strict=True))
        self.cache = {name: outputs[name.replace("past_key_values", "present")] for name in self.cache}
        logits = outputs["logits"][0, -1]
        second, first = np.partition(logits, -2)[-2:]
        self.tokens.append(int(logits.argmax()))
        self.gaps.append(float(first - second))


def write_separate(model_dir: Path, path: Path, like: Path) -> None:
    """Export ``model_dir`` to ``path`` in the weight format of ``like``, with q_proj, k_proj and v_proj separate."""
    options = ExportOptions(weights=require_manifest(like).weight_format, allow_dense=True, overwrite=True)
    with mock.patch("graph_passes.pack_qkv._match", return_value=None):
        export_model(model_dir, path, options)


def report(name: str, times: dict[str, list[float]], per_round: int) -> None:
    """Print the median times per token and the paired ratio."""
    ratio = paired_ratio(times["A"], times["B"])
    a, b = (1e3 * statistics.median(times[key]) / per_round for key in "AB")
    click.echo(f"  {name}: A {a:.3f} ms, B {b:.3f} ms a token, A / B {ratio}")


def agreement(a: Model, b: Model) -> str:
    """Describe how many greedy tokens agree."""
    pairs = list(zip(a.tokens, b.tokens, strict=True))
    same = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
    text = f"{same} of {len(pairs)} greedy tokens before the first difference"
    if same < len(pairs):
        text += f" (gap of the top two logits there {a.gaps[same]:.3f}, median {statistics.median(a.gaps):.3f})"
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path, exists=True))
@click.option("--separate-qkv", type=click.Path(path_type=Path, exists=True), help="Export A from this folder first.")
@click.option("--prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the random prompt.")
@click.option(
    "--vocabulary", type=click.IntRange(4), default=4000, show_default=True, help="Number of ids to draw from."
)
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Decode steps per round.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=9, show_default=True)
def main(
    a: Path,
    b: Path,
    separate_qkv: Path | None,
    prompt: int,
    vocabulary: int,
    tokens: int,
    threads: tuple[int, ...],
    rounds: int,
) -> None:
    """Compare A and B."""
    if separate_qkv is not None:
        write_separate(separate_qkv, a, like=b)
    ids = np.random.default_rng(0).integers(3, vocabulary, prompt).tolist()
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    for count in threads:
        models = {"A": Model(a, count), "B": Model(b, count)}
        prefill = in_turns({name: lambda m=model: m.reset(ids) for name, model in models.items()}, rounds)
        decode = in_turns(
            {name: lambda m=model: [m.step() for _ in range(tokens)] for name, model in models.items()}, rounds
        )
        click.echo(f"{count} threads, {rounds} rounds: {agreement(models['A'], models['B'])}")
        report(f"prefill of {prompt}", prefill, prompt)
        report(f"decode at {prompt}", decode, tokens)


if __name__ == "__main__":
    main()
