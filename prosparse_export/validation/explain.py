"""Find the first layer and operator whose output leaves its bound.

PyTorch runs the same tokens, but each feed-forward block's result is replaced by the artifact's own. So what the
blocks before did wrong does not count, and whatever differs first is at fault itself. Between two blocks lie
attention and norms: they are held against PyTorch; a block is held against float64 on the artifact's own input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prosparse_export.model_folder import quiet
from prosparse_export.probe import FfnNode, add_output, edited_session
from prosparse_export.stored_weights import INTEGER_STEP
from prosparse_export.validation.exactness import pad_left
from prosparse_export.validation.operators import exact_ffn, gamma, load_weights

__all__ = ["Finding", "Trace", "explain", "run_probe"]

_TOKENS = 48
_STEPS = 24
Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Finding:
    """Where an artifact leaves its bound first.

    Attributes:
        run: the way of running it; for a stored weight its name.
        layer: number of the layer; None after the last one.
        op: the operator, or the part of the layer.
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

    def __str__(self) -> str:
        if self.token < 0:
            return f"layer {self.layer}: {self.op} ({self.module}): {self.run} is not the checkpoint's"
        where = "after the last layer" if self.layer is None else f"layer {self.layer}"
        module = f" ({self.module})" if self.module else ""
        return (
            f"{where}: {self.op}{module}, token {self.token}, {self.run}: "
            f"off by {self.difference:.3g}, bound {self.bound:.3g}"
        )


@dataclass(frozen=True)
class Trace:
    """What an artifact computed for one text.

    Attributes:
        inputs: of each sparse operator, ``[tokens, d_model]``.
        outputs: likewise.
        keys: of each layer, ``[kv_heads, tokens, head_dim]``.
        values: likewise.
        logits: ``[tokens, vocabulary]``.
    """

    inputs: tuple[NDArray[np.float32], ...]
    outputs: tuple[NDArray[np.float32], ...]
    keys: tuple[NDArray[np.float32], ...]
    values: tuple[NDArray[np.float32], ...]
    logits: NDArray[np.float32]


def open_probe(
    path: Path, nodes: Sequence[FfnNode], *, library: bool, threads: int | None
) -> onnxruntime.InferenceSession:
    """Open the artifact with every sparse operator's input and output as outputs of the graph."""

    def edit(model: onnx.ModelProto) -> None:
        for node in nodes:
            add_output(model, node.node.input[0])
            add_output(model, node.node.output[0])

    return edited_session(path, edit, library=library, threads=threads)


def run_probe(
    session: onnxruntime.InferenceSession, nodes: Sequence[FfnNode], ids: NDArray[np.int64], step: int, first: int = 0
) -> Trace:
    """Run one text: ``first`` tokens at once, then ``step`` at a time."""
    parts: list[Trace] = []
    past = None
    begin, width = 0, first or step
    while begin < len(ids):
        chunk = ids[begin : begin + width]
        out = _run(session, chunk[None], np.ones((1, begin + len(chunk)), np.int64), past)
        parts.append(_trace(out, nodes, 0, 1, slice(None)))
        past = {name: value for name, value in out.items() if name.startswith("present.")}
        begin, width = begin + len(chunk), step
    last = parts[-1]
    join = [
        tuple(np.concatenate(layer) for layer in zip(*(getattr(p, n) for p in parts), strict=True))
        for n in ("inputs", "outputs")
    ]
    return Trace(join[0], join[1], last.keys, last.values, np.concatenate([p.logits for p in parts]))


def _run(
    session: onnxruntime.InferenceSession, ids: NDArray[np.int64], mask: NDArray[np.int64], present: Values | None
) -> Values:
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, "attention_mask": mask}
    past = 0
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            empty = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
            name = value.name.replace("past_key_values.", "present.")
            feeds[value.name] = empty if present is None else present[name]
            past = feeds[value.name].shape[2]
    if any(value.name == "position_ids" for value in session.get_inputs()):
        feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _trace(out: Values, nodes: Sequence[FfnNode], row: int, batch: int, tokens: slice) -> Trace:
    def of(name: str) -> NDArray[np.float32]:
        value = out[name]
        return value.reshape(batch, -1, value.shape[-1])[row, tokens]

    count = sum(name.startswith("present.") and name.endswith(".key") for name in out)
    cache = [tuple(out[f"present.{i}.{kind}"][row][:, tokens] for i in range(count)) for kind in ("key", "value")]
    inputs = tuple(of(node.node.input[0]) for node in nodes)
    return Trace(inputs, tuple(of(node.node.output[0]) for node in nodes), cache[0], cache[1], out["logits"][row])


def explain(
    model: PreTrainedModel,
    path: Path,
    nodes: Sequence[FfnNode],
    linears: Mapping[str, Sequence[str]],
    ids: NDArray[np.int64],
    *,
    fused_attention: bool,
    roundings: int = 0,
    threads: int | None = None,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Finding]:
    """Return the first operator beyond its bound for every way of running the artifact where there is one.

    Args:
        model: PyTorch with the stored weights outside the sparse operators, and the checkpoint's own in them.
        path: the artifact.
        nodes: its sparse operators.
        linears: for each operator's module, the paths of its linear layers, down_proj last.
        ids: some text, ``[tokens]``.
        roundings: matrices outside the sparse operators whose inputs the library rounds to 16 bits.
        fused_attention: rows of a padded batch are turned left inside the graph (docs/architecture.md).
        threads: intra-op threads.
        tell: progress.
    """
    ids = ids[:_TOKENS]
    findings = []
    for library in (True, False):
        label = f"{'with' if library else 'without'} library"
        session = open_probe(path, nodes, library=library, threads=threads)
        for name, run in (("prefill in one go", _prefill), ("token by token", _steps), ("left padded batch", _padded)):
            tell(f"explain: {label}, {name}", 0, 0)
            for text, trace in run(session, nodes, ids, fused_attention):
                finding = _first(model, nodes, linears, text, trace, f"{label}, {name}", roundings, library=library)
                if finding is not None:
                    findings.append(finding)
                    break
    return findings


Texts = list[tuple[NDArray[np.int64], Trace]]


def _prefill(session: onnxruntime.InferenceSession, nodes: Sequence[FfnNode], ids: NDArray[np.int64], _: bool) -> Texts:
    return [(ids, run_probe(session, nodes, ids, len(ids)))]


def _steps(session: onnxruntime.InferenceSession, nodes: Sequence[FfnNode], ids: NDArray[np.int64], _: bool) -> Texts:
    return [(ids[:_STEPS], run_probe(session, nodes, ids[:_STEPS], 1))]


def _padded(
    session: onnxruntime.InferenceSession, nodes: Sequence[FfnNode], ids: NDArray[np.int64], fused: bool
) -> Texts:
    texts = [ids[:n] for n in (max(len(ids) // 2, 1), max(len(ids) // 2 - 7, 1), max(len(ids) // 5, 1))]
    rows, mask = pad_left(texts)
    out = _run(session, rows, mask, None)
    result = []
    for row, text in enumerate(texts):
        tokens = slice(0, len(text)) if fused else slice(rows.shape[1] - len(text), None)
        trace = _trace(out, nodes, row, len(texts), tokens)
        result.append((text, replace(trace, logits=trace.logits[-len(text) :])))
    return result


def _first(
    model: PreTrainedModel,
    nodes: Sequence[FfnNode],
    linears: Mapping[str, Sequence[str]],
    ids: NDArray[np.int64],
    trace: Trace,
    run: str,
    roundings: int,
    *,
    library: bool,
) -> Finding | None:
    """Compare one text's trace with PyTorch, layer by layer."""
    inputs, keys, values, logits = _forced(model, [linears[node.module] for node in nodes], ids, trace)
    length = 4 * int(model.config.get_text_config().hidden_size) + len(ids)
    each = roundings * INTEGER_STEP / max(len(nodes), 1) if library else 0.0  # as `format_bound` has it, layer by layer
    for i, node in enumerate(nodes):
        # Every product on the way adds at most gamma(its length) of its size; norms keep sizes of order one.
        share = gamma((i + 1) * length) + (i + 1) * each
        parts = [("attention: keys", keys, trace.keys), ("attention: values", values, trace.values)]
        for op, expected, actual in parts:
            if i < min(len(expected), len(actual)):
                found = _beyond(expected[i], actual[i], share * np.abs(expected[i]).max(), axis=1)
                if found:
                    return Finding(run, i, op, "", *found)
        found = _beyond(inputs[i], trace.inputs[i], share * np.abs(inputs[i]).max(), axis=0)
        if found:
            return Finding(run, i, "attention", "", *found)
        _, weights = load_weights(model, linears[node.module], node)
        rounds = library and node.weights in ("i8", "i4")
        x = trace.inputs[i].astype(np.float64)
        expected_y, bound = exact_ffn(x, weights, node.activation, node.threshold, rounds=rounds)
        found = _beyond(expected_y, trace.outputs[i], bound, axis=0)
        if found:
            return Finding(run, i, node.node.op_type, node.module, *found)
    share = gamma((len(nodes) + 1) * length) + (len(nodes) + 1) * each
    found = _beyond(logits, trace.logits, share * np.abs(logits).max(), axis=0)
    return Finding(run, None, "norm and lm_head", "", *found) if found else None


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
    excess = np.where(np.isnan(difference), np.inf, difference) / np.maximum(limit, 1e-300)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    return int(tokens[0]), float(difference[worst]), float(limit[worst])


@torch.no_grad()
def _forced(
    model: PreTrainedModel, linears: Sequence[Sequence[str]], ids: NDArray[np.int64], trace: Trace
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[NDArray[np.float32]], NDArray[np.float32]]:
    """Run PyTorch with the artifact's results of the feed-forward blocks; return their inputs, keys, values, logits."""
    seen: dict[int, NDArray[np.float32]] = {}
    handles = []

    def watch(i: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[i] = args[0].reshape(-1, args[0].shape[-1]).float().numpy()

        return hook

    def put(i: int) -> Callable[..., torch.Tensor]:
        def hook(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(trace.outputs[i])).reshape(output.shape).to(output.dtype)

        return hook

    try:
        for i, names in enumerate(linears):
            handles.append(model.get_submodule(names[0]).register_forward_pre_hook(watch(i)))
            handles.append(model.get_submodule(names[-1]).register_forward_hook(put(i)))
        with quiet():
            result = model(input_ids=torch.from_numpy(ids[None].copy()), use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    layers = getattr(result.past_key_values, "layers", [])
    keys, values = (
        [layer.keys[0].float().numpy() for layer in layers],
        [layer.values[0].float().numpy() for layer in layers],
    )
    return [seen[i] for i in range(len(linears))], keys, values, result.logits[0].float().numpy()
