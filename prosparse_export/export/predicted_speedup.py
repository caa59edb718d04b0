"""Predict the speedup from activation sparsity measured on text, bytes read, and a timed decode step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from graph_passes import FfnFormat, FfnOutcome
from graph_passes.custom_ops import format_in
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

__all__ = ["LEAST_SPEEDUP", "TextProfile", "predict_speedup", "profile_ffns", "unprofitable_ffns"]

LEAST_SPEEDUP = 1.05
"""FFNs with a smaller speedup stay dense, since finding the active neurons takes time too."""

_FLOPS = 4e12  # for profiling: about a minute on two cores
_LEAST_TOKENS, _MOST_TOKENS, _ROW = 64, 8192, 256
_CONTEXT, _STEPS = 32, 9  # of the timed decode


@dataclass(frozen=True)
class TextProfile:
    """Activation sparsity of a model's FFNs on text; dictionaries are keyed by the path of down_proj.

    Attributes:
        texts: SHA-256 of each text, by name.
        tokens: number of tokens used.
        perplexity: of the model on them.
        ids: the first tokens, for timing.
        sparsity: fraction of zeros that down_proj reads.
        skipped: fraction of neurons that the operator skips.
        gated: whether the FFN has a gate_proj.
    """

    texts: dict[str, str]
    tokens: int
    perplexity: float
    ids: list[int]
    sparsity: dict[str, float]
    skipped: dict[str, float]
    gated: dict[str, bool]


def profile_ffns(
    checkpoint: Checkpoint, folder: Path, texts: Sequence[tuple[str, str]], progress: ProgressCallback
) -> TextProfile:
    """Measure the activation sparsity of each FFN on text.

    Args:
        checkpoint: the model; its matrices may be in their files.
        folder: its folder, for the tokenizer.
        texts: (name, contents); the number of tokens used is limited to about a minute of work.
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
        ffns = find_ffns(model)
        found = measure(model, ffns, rows, batch=len(rows) if checkpoint.weights is not None else 1)
    names = {module: name for name, module in model.named_modules()}
    downs = [names[ffn.down] for ffn in ffns]
    return TextProfile(
        texts={document.name: document.sha256 for document in documents},
        tokens=found.tokens,
        perplexity=found.perplexity,
        ids=ids[: _CONTEXT + _STEPS].tolist(),
        sparsity=dict(zip(downs, found.sparsity_by_layer, strict=True)),
        skipped=dict(zip(downs, found.skipped_by_layer, strict=True)),
        gated={names[ffn.down]: ffn.gate is not None for ffn in ffns},
    )


def unprofitable_ffns(
    profile: TextProfile, weights: FfnFormat, formats: Mapping[str, FfnFormat] = MappingProxyType({})
) -> dict[str, str]:
    """Return the FFNs that should stay dense, with the reason, by the path of down_proj.

    Args:
        profile: from `profile_ffns`.
        weights: storage format of the sparse FFNs.
        formats: of those that have another one, by the path of down_proj.
    """
    reasons = {}
    for name, skipped in profile.skipped.items():
        gain = Ffn(1, 1, profile.gated[name], formats.get(name, weights), skipped).speedup
        if gain < LEAST_SPEEDUP:
            reasons[name] = (
                f"{skipped:.1%} of its neurons are inactive: a speedup of at most {gain:.2f}x does not pay off"
            )
    return reasons


def predict_speedup(path: Path, profile: TextProfile, outcomes: Sequence[FfnOutcome]) -> PredictedSpeedup:
    """Return the predicted speedup of each FFN and of a decode step.

    The model is bytes read over memory bandwidth. The rest of a decode step is timed on this machine, and taken to be
    the same for the dense baseline.

    Args:
        path: the artifact.
        profile: from `profile_ffns`.
        outcomes: one per FFN; its operator states its format.

    Raises:
        ProSparseError: the artifact cannot run.
    """
    threads = default_threads()
    sparse, layers = [], []
    for outcome in outcomes:
        down = outcome.linears[-1] if outcome.linears else ""
        speedup = 1.0
        if not outcome.reason:
            skipped = profile.skipped.get(down, 0.0)
            ffn = Ffn(outcome.d_model, outcome.d_ff, "Gated" in outcome.op, format_in(outcome.op), skipped)
            sparse.append(ffn)
            speedup = ffn.speedup
        layers.append(LayerSpeedup(outcome.layer, speedup, profile.sparsity.get(down)))
    bandwidth = measure_bandwidth(threads)
    others = other_bytes(read_graph(path), _CONTEXT)
    seconds = _decode_seconds(path, profile.ids, threads)
    read = (sum(ffn.sparse_bytes for ffn in sparse) + others) / bandwidth
    cost = predict(sparse, others, bandwidth, max(seconds - read, 0.0))
    return PredictedSpeedup(
        texts=profile.texts,
        tokens=profile.tokens,
        perplexity=profile.perplexity,
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
            f"model: {path}: no decode step could be timed",
            hint="please report this; the export works without --profile-text",
        )
    return float(np.median(times[1:]))
