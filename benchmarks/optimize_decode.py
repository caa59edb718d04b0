"""Greedy tokens and decode time of a file before and after `prosparse optimize`, interleaved in one process.

    prosparse optimize int4/model.onnx out/model.onnx --weights i4i8
    python benchmarks/optimize_decode.py int4/model.onnx out/model.onnx --prompt 5,17,101 --tokens 64

Both files need a KV cache under the usual names. Prints how many greedy tokens agree, where each file follows its own
tokens, and the median time of a decode step of each with the middle half of the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

import prosparse_export


class Decoder:
    """One file, its session and its cache."""

    def __init__(self, path: Path, threads: int, *, library: bool, head_size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if library:
            prosparse_export.register(options)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.head_size = head_size
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.cache = {
            name: np.zeros((1, int(value.shape[1]), 0, self._width(value.shape[3])), np.float32)
            for name, value in self.inputs.items()
            if name.startswith("past_key_values.")
        }
        self.length = 0

    def _width(self, dim: object) -> int:
        return dim if isinstance(dim, int) else self.head_size

    def step(self, ids: list[int]) -> np.ndarray:
        """Return the last token's logits."""
        self.length += len(ids)
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, self.length), np.int64), **self.cache}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = np.arange(self.length - len(ids), self.length)[None]
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        self.cache = {name: outputs[name.replace("past_key_values", "present")] for name in self.cache}
        return outputs["logits"][0, -1]


def head_size(path: Path) -> int:
    """Return genai_config.json's, or 0: then the graph states it."""
    config = path.parent / "genai_config.json"
    return int(json.loads(config.read_text())["model"]["decoder"]["head_size"]) if config.is_file() else 0


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--prompt", default="5,17,101")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = head_size(options.before)
    decoders = [
        Decoder(options.before, options.threads, library=False, head_size=size),
        Decoder(options.after, options.threads, library=True, head_size=size),
    ]
    prompt = [int(token) for token in options.prompt.split(",")]
    times: list[list[float]] = [[], []]
    for _ in range(options.rounds):
        tokens: list[list[int]] = [[], []]
        gaps: list[float] = []
        for decoder, own in zip(decoders, tokens, strict=True):
            decoder.reset()
            own.append(int(decoder.step(prompt).argmax()))
        for _ in range(options.tokens - 1):
            for i, decoder in enumerate(decoders):
                began = time.perf_counter()
                logits = decoder.step(tokens[i][-1:])
                times[i].append(time.perf_counter() - began)
                tokens[i].append(int(logits.argmax()))
                if i == 0:
                    best = np.partition(logits, -2)[-2:]
                    gaps.append(float(abs(best[1] - best[0])))
    same = next((i for i, pair in enumerate(zip(*tokens, strict=True)) if pair[0] != pair[1]), len(tokens[0]))
    print(f"greedy tokens: {same} of {len(tokens[0])} before the first difference")
    if same < len(tokens[0]):
        print(f"gap of the two best logits there: {gaps[same - 1]:.3f}, median {np.median(gaps):.3f}")
    ratios = np.array(times[0]) / np.array(times[1])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"decode: {1e3 * np.median(times[0]):.3f} ms before, {1e3 * np.median(times[1]):.3f} ms after")
    print(f"ratio: {middle:.2f} (middle half {low:.2f} to {high:.2f}), {options.threads} threads")


if __name__ == "__main__":
    main()
