"""Find the first layer and operator whose output leaves its bound.

PyTorch runs the same tokens with each FFN's output replaced by the artifact's own. Errors of earlier FFNs therefore
cancel, and the first difference is a separate fault. FFNs and linear layers are compared with float64 on the
artifact's own input; their inputs, keys and values with PyTorch. If an input differs, the operators before it are at
fault, and the graph names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from graph_passes import is_quantized, parts_of
from graph_passes.cached_rows import group_scales
from graph_passes.custom_ops import ATTENTION, accuracy_level
from graph_passes.quantize_kv_cache import CACHE_LEVELS
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.artifact.accuracy_level import LEVEL_4_ERROR
from prosparse_export.artifact.manifest import GROUP_QUERY_ATTENTION
from prosparse_export.export.rounded_reference import INTEGER_STEP, as_stored, with_stored_weights
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.validation.activation_capture import ActivationCapture, CapturedActivations
from prosparse_export.validation.findings import Finding
from prosparse_export.validation.float64_reference import exact_ffn, gamma, load_weights
from prosparse_export.validation.linear_nodes import (
    LinearNode,
    are_linear,
    exact_linear,
    find_linear_nodes,
    load_linear,
)
from prosparse_export.validation.operator_checks import layer_of
from prosparse_export.validation.ops_between import OpsBetween
from prosparse_export.validation.patched_forward import PatchedForward, run_patched
from prosparse_export.validation.validation_target import ValidationTarget
from prosparse_models import Checkpoint

__all__ = ["explain"]

_STEPS = 24
_MEMORY = 1 << 30  # bytes of captured values to compare together
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Case:
    """One text run by the artifact."""

    run: str
    library: bool
    ids: NDArray[np.int64]
    captured: CapturedActivations


def explain(
    checkpoint: Checkpoint,
    target: ValidationTarget,
    ids: NDArray[np.int64],
    *,
    threads: int | None = None,
    progress: ProgressCallback = no_progress,
) -> list[Finding]:
    """Return the first operator out of bounds for each way of running the artifact that leaves its bound.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights. Weights in memory outside FFNs are rounded as stored
            and not restored.
        target: the artifact.
        ids: text, ``[tokens]``.
        threads: intra-op threads.
        progress: called with each stage.
    """
    nodes = [node for node in target.nodes if are_linear(checkpoint.model, target.linears.get(node.module, []))]
    linears = find_linear_nodes(target.graph, checkpoint.model)
    search = _Search(checkpoint, target, nodes, linears)
    findings: dict[str, Finding] = {}
    for library in (True, False):
        label = f"{'with' if library else 'without'} library"
        capture = ActivationCapture(
            target.path,
            nodes,
            linears,
            library=library,
            threads=threads,
            fused=target.fused_attention,
            scales=target.cache_scales,
        )
        waiting: list[_Case] = []
        for name, run in (("prefill", _prefill), ("token by token", _steps), ("left-padded batch", _padded)):
            progress(f"explain: {label}, {name}", 0, 0)
            for text, captured in run(capture, ids):
                waiting.append(_Case(f"{label}, {name}", library, text, captured))
                if sum(_size(case.captured) for case in waiting) > _MEMORY:  # PyTorch's values take as much again
                    search.look(waiting, findings)
                    waiting = []
        progress(f"explain: {label}, compare", 0, 0)
        search.look(waiting, findings)
    return list(findings.values())


Compare = Callable[[_Case, PatchedForward, float], Finding | None]
Texts = Iterator[tuple[NDArray[np.int64], CapturedActivations]]


def _prefill(capture: ActivationCapture, ids: NDArray[np.int64]) -> Texts:
    yield ids, capture.run(ids, first=len(ids))


def _steps(capture: ActivationCapture, ids: NDArray[np.int64]) -> Texts:
    yield ids[:_STEPS], capture.run(ids[:_STEPS], first=1)
    if len(ids) > 2 * _STEPS:  # a short and a long past
        yield ids, capture.run(ids, first=len(ids) - _STEPS)


def _padded(capture: ActivationCapture, ids: NDArray[np.int64]) -> Texts:
    texts = [ids[:n] for n in (max(len(ids) // 2, 1), max(len(ids) // 2 - 7, 1), max(len(ids) // 5, 1))]
    yield from zip(texts, capture.run_padded(texts), strict=True)


def _size(captured: CapturedActivations) -> int:
    return sum(
        a.nbytes
        for part in (captured.inputs, captured.outputs, captured.linear_inputs, captured.linear_outputs)
        for a in part
    )


class _Search:
    """Compares captured values with PyTorch, operator by operator in graph order."""

    def __init__(
        self, checkpoint: Checkpoint, target: ValidationTarget, nodes: Sequence[FfnNode], linears: Sequence[LinearNode]
    ) -> None:
        self._checkpoint, self._target, self._nodes, self._linears = checkpoint, target, nodes, linears
        ends = [*(node.output for node in nodes), *(linear.y for linear in linears)]
        self._between = OpsBetween(target.graph, ends)
        ops = {node.op_type for node in target.graph.graph.node}
        self._attention = next((op for op in (GROUP_QUERY_ATTENTION, *ATTENTION) if op in ops), "attention")
        places = {node.name: place for place, node in enumerate(target.graph.graph.node)}
        order = [(places[node.module], "ffn", i) for i, node in enumerate(nodes)]
        order += [(linear.position, "linear", i) for i, linear in enumerate(linears)]
        self._order = [(kind, i) for _, kind, i in sorted(order)]
        self._length = 4 * int(checkpoint.model.config.get_text_config().hidden_size)
        self._quantized_matrices = sum(is_quantized(stored.weights) for stored in target.outside.values())
        self._kept: list[tuple[Array, Array]] | None = None
        if checkpoint.weights is None:  # read before rounding in place: rounding twice may differ from rounding once
            self._kept = [
                load_linear(checkpoint, linear, target.initializer, target.compensated)[1:] for linear in linears
            ]
            with_stored_weights(checkpoint.model, target.outside)

    def look(self, cases: Sequence[_Case], findings: dict[str, Finding]) -> None:
        """Add the first finding of each run of ``cases`` to ``findings``; each operator's weights are read once."""
        alive = [(case, self._run_patched(case)) for case in cases]
        layer = 0
        for step, (kind, i) in enumerate(self._order):
            if not alive:
                return
            here = self._nodes[i].layer if kind == "ffn" else layer_of(self._linears[i].module)
            layer = max(layer, here or 0)
            ends = kind == "ffn" or self._ends_attention(step)
            compare = self._ffn(i) if kind == "ffn" else self._linear(i, is_first=step == 0)
            for case, patched in list(alive):
                share = self._share(case, layer)
                found = self._cache(layer, case, patched, share) if ends else None
                found = found or compare(case, patched, share)
                if found is not None:
                    findings.setdefault(case.run, found)
                    alive.remove((case, patched))
        for case, patched in alive:
            bound = self._share(case, layer + 1) * np.abs(patched.logits).max()
            beyond = _beyond(patched.logits, case.captured.logits, bound, axis=0)
            if beyond:
                findings.setdefault(case.run, Finding(case.run, None, self._between("logits"), "", *beyond))

    def _run_patched(self, case: _Case) -> PatchedForward:
        outside = self._target.outside if self._kept is None else {}
        ffns = [self._target.linears[node.module] for node in self._nodes]
        with as_stored(self._checkpoint, outside):
            modules = [parts_of(linear.module)[0] for linear in self._linears]  # packed projections share their input
            captured = case.captured
            cache = (captured.keys, captured.values) if self._target.cache_scales else None
            return run_patched(self._checkpoint.model, ffns, captured.outputs, modules, case.ids, cache)

    def _share(self, case: _Case, layer: int) -> float:
        """Return the bound on rounding errors up to ``layer``, as a fraction of the largest value."""
        # Every MatMul up to here adds at most gamma(its length) of its size; norms keep sizes of order one.
        # 16-bit activations add their share as in `format_bound`, layer by layer.
        matrices = self._quantized_matrices / max(len(self._nodes), 1)
        each = matrices * INTEGER_STEP if case.library else 0.0
        if self._target.accuracy_level == 4:  # the body rounds too
            each += matrices * LEVEL_4_ERROR
        return gamma((layer + 1) * (self._length + len(case.ids))) + (layer + 1) * each

    def _ends_attention(self, step: int) -> bool:
        """Return whether the linear layer at ``step`` is the last one before an FFN: attention's output projection."""
        return step + 1 < len(self._order) and self._order[step + 1][0] == "ffn"

    def _cache(self, layer: int, case: _Case, patched: PatchedForward, share: float) -> Finding | None:
        pairs = (("keys", patched.keys, case.captured.keys), ("values", patched.values, case.captured.values))
        for what, expected, actual in pairs:
            if layer < min(len(expected), len(actual)):
                own = expected[layer]
                first = actual[layer].shape[1] - own.shape[1]  # transformers keeps only a sliding window's tokens
                bound = share * np.abs(own).max()
                if scales := self._target.cache_scales:
                    step = _step(own, scales[layer][what == "values"])
                    own, bound = _within_levels(own, step), bound + step / 2
                beyond = _beyond(own, actual[layer][:, first:], bound, axis=1)
                if beyond:
                    token, *numbers = beyond
                    return Finding(case.run, layer, f"{self._attention}: {what}", "", first + token, *numbers)
        return None

    def _ffn(self, i: int) -> Compare:
        node = self._nodes[i]
        linears = self._target.linears[node.module]
        model, files, read = self._checkpoint.model, self._checkpoint.weights, self._target.initializer
        weights = cache(lambda: load_weights(model, linears, node, files, read, self._target.compensated)[1])

        def compare(case: _Case, patched: PatchedForward, share: float) -> Finding | None:
            x = case.captured.inputs[i]
            beyond = _beyond(patched.inputs[i], x, share * np.abs(patched.inputs[i]).max(), axis=0)
            if beyond:
                return Finding(case.run, node.layer, self._between(node.node.input[0]), "", *beyond)
            rounds = case.library and is_quantized(node.weights)
            wide, level = x.astype(np.float64), accuracy_level(node.node.op_type)
            expected, bound = exact_ffn(wide, weights(), node.activation, node.threshold, rounds=rounds, level=level)
            beyond = _beyond(expected, case.captured.outputs[i], bound, axis=0)
            return Finding(case.run, node.layer, node.node.op_type, node.module, *beyond) if beyond else None

        return compare

    def _linear(self, i: int, *, is_first: bool) -> Compare:
        linear = self._linears[i]
        layer = layer_of(linear.module)
        kept = self._kept
        target = self._target

        def load() -> tuple[Array, Array]:
            if kept is not None:
                return kept[i]
            return load_linear(self._checkpoint, linear, target.initializer, target.compensated)[1:]

        weights = cache(load)

        def compare(case: _Case, patched: PatchedForward, share: float) -> Finding | None:
            x, own = case.captured.linear_inputs[i], patched.linear_inputs[i]
            beyond = _beyond(own, x, share * np.abs(own).max(), axis=0)
            if beyond:
                between = self._between(linear.x, from_inputs=is_first)
                return Finding(case.run, layer, between, f"before {linear.module}", *beyond)
            rounds = case.library and is_quantized(linear.weights)
            level = accuracy_level(linear.op)
            expected, bound = exact_linear(x.astype(np.float64), *weights(), rounds=rounds, level=level)
            beyond = _beyond(expected, case.captured.linear_outputs[i], bound, axis=0)
            return Finding(case.run, layer, linear.op, linear.module, *beyond) if beyond else None

        return compare


def _step(own: NDArray[np.float32], scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the levels' distance for ``own``, ``[kv_heads, tokens, head_dim]``; a token's scale may round upwards."""
    if scale is None:
        steps: NDArray[np.float32] = group_scales(own) * np.float32(1 + 2.0**-7)
        return steps
    return scale.reshape(-1, 1, scale.shape[-1])


def _within_levels(own: Array, step: Array) -> Array:
    """Return values as an 8-bit cache can hold them, before rounding; larger ones are cut."""
    return np.clip(own, -(CACHE_LEVELS + 1) * step, CACHE_LEVELS * step)


def _beyond(
    expected: NDArray[np.floating], actual: NDArray[np.floating], bound: NDArray[np.float64] | float, axis: int
) -> tuple[int, float, float] | None:
    """Return the first token beyond the bound, the worst difference and its bound; None if all are within."""
    difference = np.abs(actual.astype(np.float64) - expected)
    limit = np.broadcast_to(np.asarray(bound, np.float64), difference.shape)
    wrong = ~(difference <= limit)  # NaN is beyond the bound
    if not wrong.any():
        return None
    tokens = np.flatnonzero(wrong.any(axis=tuple(d for d in range(wrong.ndim) if d != axis)))
    excess = np.where(np.isnan(difference), math.inf, difference) / np.maximum(limit, 1e-300)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    return int(tokens[0]), float(difference[worst]), float(limit[worst])
