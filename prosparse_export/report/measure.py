"""Measure which neurons of an artifact are active over text, and how fast each FFN is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.activation_counts import Activity, LayerActivity, measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.artifact.integrity import check_files
from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.artifact.model_settings import context_length, require_tokenizer
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.report.result import LayerReport, Report
from prosparse_export.report.speed import LayerSpeed, measure_speed
from prosparse_export.runtime.operator_library import check_library, library_info

__all__ = ["ReportOptions", "measure"]

RARE, HOT = 0.01, 0.5
_BINS = 40


@dataclass(frozen=True)
class ReportOptions:
    """What to measure.

    Attributes:
        tokens: maximum number of tokens, shared evenly by the texts.
        context: tokens per window, limited by the model's context.
        speed: time every FFN, sparse and dense.
        threads: intra-op threads for timing.
    """

    tokens: int = 4096
    context: int = 512
    speed: bool = True
    threads: int = 1


def measure(
    path: Path,
    texts: Sequence[tuple[str, str]],
    options: ReportOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> Report:
    """Measure the artifact at ``path`` on (name, text) pairs.

    Without ``options.speed``, it runs in function bodies where the operator library is not available.

    Raises:
        ProSparseError: the artifact has no sparse operator or no tokenizer, a text is too short, or speed cannot be
            timed without the operator library.
    """
    options = options or ReportOptions()
    graph = read_graph(path)
    check_files(path)
    isa = _isa(required=options.speed)
    ids = _tokenize(path, texts, options.tokens)
    context = min(options.context, context_length(path.parent) or options.context)
    activity = measure_activity(path, ids, context=context, library=isa is not None, progress=progress)
    nodes = ffn_nodes(graph)
    speeds: list[LayerSpeed | None] = [None] * len(nodes)
    if options.speed:
        progress("speed", 0, 0)
        speeds = list(
            measure_speed(path, nodes, ids[0][: min(64, context)], threads=options.threads, progress=progress)
        )
    ends = _position_groups(activity)
    gated = [node.gated for node in nodes]
    layers = tuple(
        _layer(layer, activity, ends, gate, speed)
        for layer, gate, speed in zip(activity.layers, gated, speeds, strict=True)
    )
    manifest = read_manifest(path)
    return Report(
        name=path.name,
        sparsity=activity.sparsity,
        tokens=len(activity.texts),
        context=context,
        texts=tuple(name for name, _ in texts),
        layers=layers,
        positions=tuple(ends),
        manifest=manifest,
        calibration=manifest.calibration if manifest is not None else None,
        machine=_machine(options.threads, isa),
    )


def _tokenize(path: Path, texts: Sequence[tuple[str, str]], max_tokens: int) -> list[NDArray[np.int64]]:
    tokenizer = require_tokenizer(path.parent)
    share = max(max_tokens // len(texts), 16)
    result = []
    for name, text in texts:
        ids = np.asarray(tokenizer.encode(text[: share * 24]).ids[:share], np.int64)
        if len(ids) < 16:
            raise ProSparseError(f"text: {name}: expected at least 16 tokens, got {len(ids)}", hint="pass more text")
        result.append(ids)
    return result


def _position_groups(activity: Activity) -> list[int]:
    """Return the upper ends of groups of positions, which grow from one position by a quarter each."""
    longest = int(activity.positions.max()) + 1
    ends = {min(max(round(1.25**k), k + 1), longest) for k in range(64)}
    return sorted(ends)


def _layer(
    layer: LayerActivity, activity: Activity, ends: Sequence[int], gated: bool, speed: LayerSpeed | None
) -> LayerReport:
    active = layer.per_token / layer.d_ff
    top = max(float(active.max()), 1 / layer.d_ff)
    counts, _ = np.histogram(active, bins=_BINS, range=(0, top))
    share = np.sort(layer.per_neuron / len(active))[::-1]
    ranks = np.unique(np.linspace(0, layer.d_ff - 1, min(200, layer.d_ff)).round().astype(int))
    later = layer.shared >= 0
    pairs = layer.per_token[later].sum()
    # If tokens were independent, a neuron active for a fraction a of them would be kept with probability a.
    chance = float((share**2).sum() / share.sum()) if share.sum() else 0.0
    begins = [0, *ends[:-1]]
    by_position = tuple(
        1 - float(active[(activity.positions >= a) & (activity.positions < b)].mean())
        for a, b in zip(begins, ends, strict=True)
    )
    return LayerReport(
        module=layer.module,
        d_ff=layer.d_ff,
        sparsity=layer.sparsity,
        skipped=layer.skipped,
        quantiles=tuple(float(q) for q in np.quantile(1 - active, [0.05, 0.25, 0.5, 0.75, 0.95])),
        histogram=tuple(float(c) for c in counts / len(active)),
        histogram_end=top,
        activity=tuple(float(a) for a in share[ranks]),
        dead=int((layer.per_neuron == 0).sum()),
        rare=int(((share > 0) & (share < RARE)).sum()),
        hot=int((share >= HOT).sum()),
        kept=float(layer.shared[later].sum() / pairs) if pairs else math.nan,
        kept_by_chance=chance,
        by_position=by_position,
        by_text=tuple(1 - float(active[activity.texts == t].mean()) for t in range(int(activity.texts.max()) + 1)),
        ceiling=3 / (1 + 2 * (1 - layer.skipped)) if gated else 2 / (1 + (1 - layer.skipped)),
        speed=speed,
    )


def _isa(*, required: bool) -> str | None:
    """Return the variant of the operator library that will run, or None if none can and it is not required."""
    if required:
        check_library()
        return library_info().isa_used
    try:
        return library_info().isa_used
    except ProSparseError:
        return None


def _machine(threads: int, isa: str | None) -> str:
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"onnxruntime {onnxruntime.__version__}, ISA {isa or 'none'}, {count}"
