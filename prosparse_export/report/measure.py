"""The numbers of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.activation_counts import Activity, LayerActivity, measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.artifact.integrity import check_files
from prosparse_export.artifact.json_records import to_json
from prosparse_export.artifact.manifest import Manifest, read_manifest
from prosparse_export.artifact.measured_records import ThresholdSearch
from prosparse_export.artifact.model_settings import context_length, require_tokenizer
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.report.speed import LayerSpeed, measure_speed
from prosparse_export.runtime.operator_library import check_library, library_info

__all__ = ["LayerReport", "Report", "ReportOptions", "measure"]

RARE, HOT = 0.01, 0.5
_BINS = 40


@dataclass(frozen=True)
class ReportOptions:
    """What to measure.

    Attributes:
        tokens: at most so many tokens of text.
        context: tokens per window; no more than the model takes.
        speed: time every layer, sparse against dense.
        threads: intra-op threads of the timed runs.
    """

    tokens: int = 4096
    context: int = 512
    speed: bool = True
    threads: int = 1


@dataclass(frozen=True)
class LayerReport:
    """One feed-forward block.

    Attributes:
        module: the PyTorch module.
        d_ff: neurons.
        sparsity: share of exact zeros at down_proj's input.
        quantiles: of the sparsity of single tokens, at 5, 25, 50, 75 and 95 %.
        histogram: share of tokens by share of active neurons, in bins of equal width over 0 to `histogram_end`.
        histogram_end: the largest share of active neurons of a token.
        activity: share of tokens for which a neuron is active, sorted downwards, at up to 200 ranks.
        dead: neurons active for no token.
        rare: active for some, but fewer than 1 % of tokens.
        hot: active for at least half of the tokens.
        kept: share of a token's active neurons that were active for the token before.
        kept_by_chance: what it would be if neurons were independent from token to token.
        by_position: sparsity by position in a window, in up to 32 groups.
        by_text: sparsity by text.
        ceiling: largest speed-up that the sparsity allows where reading weights is all that counts.
        speed: measured; None if it was not.
    """

    module: str
    d_ff: int
    sparsity: float
    quantiles: tuple[float, ...]
    histogram: tuple[float, ...]
    histogram_end: float
    activity: tuple[float, ...]
    dead: int
    rare: int
    hot: int
    kept: float
    kept_by_chance: float
    by_position: tuple[float, ...]
    by_text: tuple[float, ...]
    ceiling: float
    speed: LayerSpeed | None


@dataclass(frozen=True)
class Report:
    """An artifact's activity.

    Attributes:
        name: the graph's file.
        sparsity: mean over layers.
        tokens: measured.
        context: tokens per window; no more than the model takes.
        texts: names, in the order of `LayerReport.by_text`.
        layers: in the graph's order.
        positions: upper ends of the groups of `LayerReport.by_position`.
        manifest: prosparse.json.
        calibration: the manifest's threshold search, or None; see `prosparse_models.training.calibration_record`, whose
            trials are its points.
        machine: what the speed was measured on.
    """

    name: str
    sparsity: float
    tokens: int
    context: int
    texts: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    positions: tuple[int, ...]
    manifest: Manifest | None
    calibration: ThresholdSearch | None
    machine: str

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        values: dict[str, Any] = to_json(self)
        return values


def measure(
    path: Path,
    texts: Sequence[tuple[str, str]],
    options: ReportOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> Report:
    """Measure an artifact on (name, text) pairs.

    Raises:
        ProSparseError: it has no sparse operator or no tokenizer, or a text is too short.
    """
    options = options or ReportOptions()
    graph = read_graph(path)
    check_files(path)
    if options.speed:
        check_library()
    ids = _tokenize(path, texts, options.tokens)
    context = min(options.context, context_length(path.parent) or options.context)
    activity = measure_activity(
        path,
        ids,
        context=context,
        progress=progress,
    )
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
        machine=_machine(options.threads),
    )


def _tokenize(path: Path, texts: Sequence[tuple[str, str]], max_tokens: int) -> list[NDArray[np.int64]]:
    tokenizer = require_tokenizer(path.parent)
    share = max(max_tokens // len(texts), 16)
    result = []
    for name, text in texts:
        ids = np.asarray(tokenizer.encode(text[: share * 24]).ids[:share], np.int64)
        if len(ids) < 16:
            raise ProSparseError(f"text: {name}: expected at least 16 tokens, got {len(ids)}", hint="give more text")
        result.append(ids)
    return result


def _position_groups(activity: Activity) -> list[int]:
    """Return the upper ends of groups of positions: single ones at first, then ever larger ones."""
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
    # Independent from token to token: a neuron active for a share a of tokens is kept with probability a.
    chance = float((share**2).sum() / share.sum()) if share.sum() else 0.0
    begins = [0, *ends[:-1]]
    by_position = tuple(
        1 - float(active[(activity.positions >= a) & (activity.positions < b)].mean())
        for a, b in zip(begins, ends, strict=True)
    )
    sparsity = layer.sparsity
    return LayerReport(
        module=layer.module,
        d_ff=layer.d_ff,
        sparsity=sparsity,
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


def _machine(threads: int) -> str:
    isa = library_info().isa_used or "none"
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"onnxruntime {onnxruntime.__version__}, ISA {isa}, {count}"
