"""Find the first layer and operator whose output leaves its bound.

PyTorch runs the same tokens, but each feed-forward block's result is replaced by the artifact's own. So what the
blocks before did wrong does not count, and whatever differs first is at fault itself. Feed-forward blocks and linear
layers are held against float64 on the artifact's own input; what goes into them, keys and values against PyTorch: if
that differs, what lies between is at fault, and the graph says which operators that are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from graph_passes import is_quantized, parts_of
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.export.rounded_reference import INTEGER_STEP, as_stored, with_stored_weights
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.validation.activation_capture import Probe, Trace
from prosparse_export.validation.float64_reference import exact_ffn, gamma, load_weights
from prosparse_export.validation.linear_nodes import LinearSite, comparable, exact_linear, linear_sites, load_linear
from prosparse_export.validation.operator_checks import layer_of
from prosparse_export.validation.ops_between import Between
from prosparse_export.validation.patched_forward import Forced, run_forced
from prosparse_export.validation.validation_target import Subject
from prosparse_models import Checkpoint

__all__ = ["Finding", "explain"]

_STEPS = 24
_MEMORY = 1 << 30  # bytes of traces that are compared together
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Finding:
    """Where an artifact leaves its bound first.

    Attributes:
        run: the way of running it; for a stored weight its name.
        layer: number of the layer; None before the first and after the last one.
        op: the operator, or the operators between two that were looked at.
        module: the PyTorch module, if it is one.
        token: first token (position in its text) that is beyond the bound; -1 for a stored weight.
        difference: by how much the worst number differs; NaN if it is none.
        bound: what was allowed for it.
    """

    run: str
    layer: int | None
    op: str
    module: str
    token: int
    difference: float
    bound: float

    @property
    def where(self) -> str:
        """The layer, in words."""
        return "outside the layers" if self.layer is None else f"layer {self.layer}"

    def __str__(self) -> str:
        where = self.where
        if self.token < 0:
            module = f" ({self.module})" if self.module else ""
            return f"{where}: {self.op}{module}: {self.run} is not the checkpoint's"
        module = f" ({self.module})" if self.module else ""
        return (
            f"{where}: {self.op}{module}, token {self.token}, {self.run}: "
            f"off by {self.difference:.3g}, bound {self.bound:.3g}"
        )


@dataclass(frozen=True, eq=False)
class _Case:
    """One text as the artifact ran it."""

    run: str
    library: bool
    ids: NDArray[np.int64]
    trace: Trace


def explain(
    checkpoint: Checkpoint,
    subject: Subject,
    ids: NDArray[np.int64],
    *,
    threads: int | None = None,
    progress: ProgressCallback = no_progress,
) -> list[Finding]:
    """Return the first operator beyond its bound for every way of running the artifact where there is one.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights. Those in memory are rounded as stored, for good,
            outside the feed-forward blocks.
        subject: the artifact.
        ids: some text, ``[tokens]``.
        threads: intra-op threads.
        progress: called with each stage.
    """
    nodes = [node for node in subject.nodes if comparable(checkpoint.model, subject.linears.get(node.module, []))]
    sites = linear_sites(subject.graph, checkpoint.model)
    search = _Search(checkpoint, subject, nodes, sites)
    findings: dict[str, Finding] = {}
    for library in (True, False):
        label = f"{'with' if library else 'without'} library"
        probe = Probe(subject.path, nodes, sites, library=library, threads=threads, fused=subject.fused_attention)
        waiting: list[_Case] = []
        for name, run in (("prefill in one go", _prefill), ("token by token", _steps), ("left padded batch", _padded)):
            progress(f"explain: {label}, {name}", 0, 0)
            for text, trace in run(probe, ids):
                waiting.append(_Case(f"{label}, {name}", library, text, trace))
                if sum(_size(case.trace) for case in waiting) > _MEMORY:  # PyTorch's numbers take as much again
                    search.look(waiting, findings)
                    waiting = []
        progress(f"explain: {label}, compare", 0, 0)
        search.look(waiting, findings)
    return list(findings.values())


Compare = Callable[[_Case, Forced, float], Finding | None]
Texts = Iterator[tuple[NDArray[np.int64], Trace]]


def _prefill(probe: Probe, ids: NDArray[np.int64]) -> Texts:
    yield ids, probe.run(ids, first=len(ids))


def _steps(probe: Probe, ids: NDArray[np.int64]) -> Texts:
    yield ids[:_STEPS], probe.run(ids[:_STEPS], first=1)
    if len(ids) > 2 * _STEPS:  # a short past and a long one
        yield ids, probe.run(ids, first=len(ids) - _STEPS)


def _padded(probe: Probe, ids: NDArray[np.int64]) -> Texts:
    texts = [ids[:n] for n in (max(len(ids) // 2, 1), max(len(ids) // 2 - 7, 1), max(len(ids) // 5, 1))]
    yield from zip(texts, probe.run_padded(texts), strict=True)


def _size(trace: Trace) -> int:
    return sum(a.nbytes for part in (trace.inputs, trace.outputs, trace.site_inputs, trace.site_outputs) for a in part)


class _Search:
    """Compares traces with PyTorch, operator by operator in the graph's order."""

    def __init__(
        self, checkpoint: Checkpoint, subject: Subject, nodes: Sequence[FfnNode], sites: Sequence[LinearSite]
    ) -> None:
        self._checkpoint, self._subject, self._nodes, self._sites = checkpoint, subject, nodes, sites
        ends = [*(node.node.output[0] for node in nodes), *(site.y for site in sites)]
        self._between = Between(subject.graph, ends)
        self._attention = "GroupQueryAttention" if subject.fused_attention else "attention"
        places = {node.name: place for place, node in enumerate(subject.graph.graph.node)}
        order = [(places[node.module], "ffn", i) for i, node in enumerate(nodes)]
        order += [(site.position, "linear", i) for i, site in enumerate(sites)]
        self._order = [(kind, i) for _, kind, i in sorted(order)]
        self._length = 4 * int(checkpoint.model.config.get_text_config().hidden_size)
        self._roundings = sum(is_quantized(stored.weights) for stored in subject.outside.values())
        self._kept: list[tuple[Array, Array]] | None = None
        if checkpoint.weights is None:  # rounding twice may not be rounding once: what they were, before it is done
            self._kept = [load_linear(checkpoint, site)[1:] for site in sites]
            with_stored_weights(checkpoint.model, subject.outside)

    def look(self, cases: Sequence[_Case], findings: dict[str, Finding]) -> None:
        """Add the first finding of each run of ``cases`` to ``findings``; an operator's weights are read once."""
        alive = [(case, self._forced(case)) for case in cases]
        layer = 0
        for step, (kind, i) in enumerate(self._order):
            if not alive:
                return
            here = self._nodes[i].layer if kind == "ffn" else layer_of(self._sites[i].module)
            layer = max(layer, here or 0)
            ends = kind == "ffn" or self._ends_attention(step)
            compare = self._ffn(i) if kind == "ffn" else self._linear(i, is_first=step == 0)
            for case, forced in list(alive):
                share = self._share(case, layer)
                found = self._cache(layer, case, forced, share) if ends else None
                found = found or compare(case, forced, share)
                if found is not None:
                    findings.setdefault(case.run, found)
                    alive.remove((case, forced))
        for case, forced in alive:
            bound = self._share(case, layer + 1) * np.abs(forced.logits).max()
            beyond = _beyond(forced.logits, case.trace.logits, bound, axis=0)
            if beyond:
                findings.setdefault(case.run, Finding(case.run, None, self._between("logits"), "", *beyond))

    def _forced(self, case: _Case) -> Forced:
        outside = self._subject.outside if self._kept is None else {}
        blocks = [self._subject.linears[node.module] for node in self._nodes]
        with as_stored(self._checkpoint, outside):
            modules = [parts_of(site.module)[0] for site in self._sites]  # packed ones read the same
            return run_forced(self._checkpoint.model, blocks, case.trace.outputs, modules, case.ids)

    def _share(self, case: _Case, layer: int) -> float:
        """Return how far rounding may have come by ``layer``, as a share of the largest number."""
        # Every product on the way adds at most gamma(its length) of its size; norms keep sizes of order one.
        # 16-bit activations: as `format_bound` has it, layer by layer.
        each = self._roundings * INTEGER_STEP / max(len(self._nodes), 1) if case.library else 0.0
        return gamma((layer + 1) * (self._length + len(case.ids))) + (layer + 1) * each

    def _ends_attention(self, step: int) -> bool:
        """Tell whether the linear layer at ``step`` is the last before a feed-forward block: attention's output."""
        return step + 1 < len(self._order) and self._order[step + 1][0] == "ffn"

    def _cache(self, layer: int, case: _Case, forced: Forced, share: float) -> Finding | None:
        pairs = (("keys", forced.keys, case.trace.keys), ("values", forced.values, case.trace.values))
        for what, expected, actual in pairs:
            if layer < min(len(expected), len(actual)):
                own = expected[layer]
                first = actual[layer].shape[1] - own.shape[1]  # transformers keeps a sliding window's tokens alone
                beyond = _beyond(own, actual[layer][:, first:], share * np.abs(own).max(), axis=1)
                if beyond:
                    token, *numbers = beyond
                    return Finding(case.run, layer, f"{self._attention}: {what}", "", first + token, *numbers)
        return None

    def _ffn(self, i: int) -> Compare:
        node = self._nodes[i]
        linears = self._subject.linears[node.module]
        weights = cache(lambda: load_weights(self._checkpoint.model, linears, node, self._checkpoint.weights)[1])

        def compare(case: _Case, forced: Forced, share: float) -> Finding | None:
            x = case.trace.inputs[i]
            beyond = _beyond(forced.inputs[i], x, share * np.abs(forced.inputs[i]).max(), axis=0)
            if beyond:
                return Finding(case.run, node.layer, self._between(node.node.input[0]), "", *beyond)
            rounds = case.library and is_quantized(node.weights)
            wide = x.astype(np.float64)
            expected, bound = exact_ffn(wide, weights(), node.activation, node.threshold, rounds=rounds)
            beyond = _beyond(expected, case.trace.outputs[i], bound, axis=0)
            return Finding(case.run, node.layer, node.node.op_type, node.module, *beyond) if beyond else None

        return compare

    def _linear(self, i: int, *, is_first: bool) -> Compare:
        site = self._sites[i]
        layer = layer_of(site.module)
        kept = self._kept
        weights = cache(lambda: load_linear(self._checkpoint, site)[1:] if kept is None else kept[i])

        def compare(case: _Case, forced: Forced, share: float) -> Finding | None:
            x, own = case.trace.site_inputs[i], forced.site_inputs[i]
            beyond = _beyond(own, x, share * np.abs(own).max(), axis=0)
            if beyond:
                between = self._between(site.x, from_inputs=is_first)
                return Finding(case.run, layer, between, f"before {site.module}", *beyond)
            rounds = case.library and is_quantized(site.weights)
            expected, bound = exact_linear(x.astype(np.float64), *weights(), rounds=rounds)
            beyond = _beyond(expected, case.trace.site_outputs[i], bound, axis=0)
            return Finding(case.run, layer, site.op, site.module, *beyond) if beyond else None

        return compare


def _beyond(
    expected: NDArray[np.floating], actual: NDArray[np.floating], bound: NDArray[np.float64] | float, axis: int
) -> tuple[int, float, float] | None:
    """Return the first token beyond the bound, the largest difference and its bound; None if all is within."""
    difference = np.abs(actual.astype(np.float64) - expected)
    limit = np.broadcast_to(np.asarray(bound, np.float64), difference.shape)
    wrong = ~(difference <= limit)  # a NaN is wrong
    if not wrong.any():
        return None
    tokens = np.flatnonzero(wrong.any(axis=tuple(d for d in range(wrong.ndim) if d != axis)))
    excess = np.where(np.isnan(difference), math.inf, difference) / np.maximum(limit, 1e-300)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    return int(tokens[0]), float(difference[worst]), float(limit[worst])
