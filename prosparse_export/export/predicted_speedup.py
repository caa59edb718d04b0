"""What skipping inactive neurons will gain: measured sparsity of the model, bytes, and one timed decode step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graph_passes import FfnFormat, FfnOutcome
from prosparse_export.analysis.bandwidth import measure_bandwidth
from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.analysis.graph_bytes import other_bytes
from prosparse_export.analysis.roofline import Ffn, predict
from prosparse_export.artifact.measured_records import LayerSpeedup, PredictedSpeedup
from prosparse_export.errors import ProSparseError
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.threads import default_threads
from prosparse_export.text import tokenize
from prosparse_models import Checkpoint, find_ffns, measure
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["LEAST_GAIN", "expected_gain", "layers_that_do_not_pay", "measure_layers"]

LEAST_GAIN = 1.05
"""A block with less than this to gain stays dense: finding the active neurons has a cost of its own."""

_FLOPS = 4e12  # of calibration: about a minute of two cores
_LEAST_TOKENS, _MOST_TOKENS, _ROW = 64, 8192, 256
_CONTEXT, _STEPS = 32, 9  # of the timed decode


def measure_layers(
    checkpoint: Checkpoint, folder: Path, texts: Sequence[tuple[str, str]], progress: ProgressCallback
) -> dict[str, Any]:
    """Return the sparsity of each block on text, by the path of its down_proj.

    Args:
        checkpoint: the model, also with its matrices in their files.
        folder: its folder, for the tokenizer.
        texts: (name, text); as many of their tokens are used as a minute computes.
        progress: called with each stage.

    Raises:
        ProSparseError: the text cannot be used.
    """
    progress("profile", 0, 0)
    model = checkpoint.model
    parameters = sum(p.numel() for p in model.parameters())
    wanted = int(min(max(_FLOPS / (2 * parameters), _LEAST_TOKENS), _MOST_TOKENS))
    with quiet():
        documents = tokenize(load_tokenizer(folder), texts, wanted)
    ids = torch.cat([torch.from_numpy(document.ids) for document in documents])
    row = min(_ROW, len(ids))
    rows = list(ids[: len(ids) // row * row].reshape(-1, row))
    with quiet(), as_stored(checkpoint, {}):
        blocks = find_ffns(model)
        found = measure(model, blocks, rows, batch=len(rows) if checkpoint.weights is not None else 1)
    names = {module: name for name, module in model.named_modules()}
    downs = [names[block.down] for block in blocks]
    return {
        "texts": {document.name: document.sha256 for document in documents},
        "tokens": found.tokens,
        "perplexity": found.perplexity,
        "ids": ids[: _CONTEXT + _STEPS].tolist(),
        "sparsity": dict(zip(downs, found.sparsity_by_layer, strict=True)),
        "skipped": dict(zip(downs, found.skipped_by_layer, strict=True)),
        "gated": {names[b.down]: b.gate is not None for b in blocks},
    }


def layers_that_do_not_pay(measured: Mapping[str, Any], weights: FfnFormat) -> dict[str, str]:
    """Return why a block stays dense, by the path of its down_proj.

    Args:
        measured: from `measure_layers`.
        weights: format of the sparse blocks.
    """
    reasons = {}
    for name, skipped in measured["skipped"].items():
        gain = Ffn(1, 1, measured["gated"][name], weights, skipped).speedup
        if gain < LEAST_GAIN:
            reasons[name] = (
                f"{skipped:.1%} of its neurons are inactive: a speedup of at most {gain:.2f}x does not pay off"
            )
    return reasons


def expected_gain(
    path: Path, measured: Mapping[str, Any], outcomes: Sequence[FfnOutcome], weights: FfnFormat
) -> PredictedSpeedup:
    """Return the predicted speedup of each FFN and of a decode step.

    Bytes that are read decide; what a step takes beyond them is timed, on the calibration text and this machine, and
    is the same for the dense step.

    Args:
        path: the artifact.
        measured: from `measure_layers`.
        outcomes: all blocks.
        weights: format of the sparse ones.

    Raises:
        ProSparseError: the artifact cannot run.
    """
    threads = default_threads()
    sparse, layers = [], []
    for outcome in outcomes:
        down = outcome.linears[-1] if outcome.linears else None
        ffn = Ffn(outcome.d_model, outcome.d_ff, "Gated" in outcome.op, weights, measured["skipped"].get(down, 0.0))
        if not outcome.reason:
            sparse.append(ffn)
        layers.append(
            LayerSpeedup(outcome.layer, 1.0 if outcome.reason else ffn.speedup, measured["sparsity"].get(down))
        )
    bandwidth = measure_bandwidth(threads)
    others = other_bytes(read_graph(path), _CONTEXT)
    seconds = _decode_seconds(path, measured["ids"], threads)
    read = (sum(ffn.sparse_bytes for ffn in sparse) + others) / bandwidth
    cost = predict(sparse, others, bandwidth, max(seconds - read, 0.0))
    return PredictedSpeedup(
        texts=measured["texts"],
        tokens=measured["tokens"],
        perplexity=measured["perplexity"],
        layers=tuple(layers),
        decode_speedup=cost.speedup,
        decode_seconds=cost.sparse_seconds,
        ffn_share=cost.ffn_share,
        threads=threads,
        bandwidth=bandwidth,
    )


def _decode_seconds(path: Path, ids: Sequence[int], threads: int) -> float:
    """Return the median time of a decode step over the text's tokens."""
    model = SparseModel.open(path, threads=threads)
    tokens = np.resize(np.asarray(ids, np.int64), min(_CONTEXT + _STEPS, model.context or _CONTEXT + _STEPS))
    decoder = model.decoder(1, len(tokens))
    prompt = max(len(tokens) - _STEPS, 1)
    decoder.prefill(tokens[None, :prompt], np.ones((1, prompt), np.int64))
    times = []
    for token in tokens[prompt:]:
        began = time.perf_counter()
        decoder.step(np.array([token]))
        times.append(time.perf_counter() - began)
    if not times:
        raise ProSparseError(
            f"model: {path}: expected decode steps to time, got none",
            hint="leave out --profile-text: the export does not need it; and please report this",
        )
    return float(np.median(times[1:]))
