"""Count the active neurons of an artifact's sparse FFNs over text.

A neuron is active if its operator reads the neuron's rows of up_proj and down_proj. Which ones those are is stated once
per activation, as the value ``inactive`` of the operator's body (graph_passes/function_bodies.py). The counts come
from that body: next to each operator, an edited copy of the graph computes the part of the body that ends at
``inactive`` and reduces it to sums, so no hidden activation leaves the graph and down_proj is never dequantized.

dReLU applies a second ReLU, to up_proj, after the rows have been read. Its activation sparsity is therefore higher than
the fraction of neurons that are skipped, and `LayerActivity` has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from graph_passes.custom_ops import DOMAIN
from graph_passes.function_bodies import function_proto
from prosparse_export.analysis.debug_session import add_output, edited_session, first_feeds
from prosparse_export.analysis.ffn_nodes import FfnNode, ffn_nodes, read_graph
from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["Activity", "LayerActivity", "measure_activity"]

_DOMAIN = f"{DOMAIN}.counts"
_COUNTS = ("per_token", "per_neuron", "shared", "zeros")
_IS_ZERO = {"drelu": "Equal (h, count_zero)"}
_SUMS = """
<domain: "sums", opset_import: ["" : {opset}]>
sums (inactive, h) => (per_token, per_neuron, shared, zeros)
{{
  count_zero = Constant <value_float = 0.0> ()
  count_begin = Constant <value_ints = [0]> ()
  count_second = Constant <value_ints = [1]> ()
  count_last = Constant <value_ints = [-1]> ()
  count_end = Constant <value_ints = [{end}]> ()
  count_rows = Constant <value_ints = [0]> ()
  count_columns = Constant <value_ints = [1]> ()
  count_is_active = Not (inactive)
  count_active_rows = Flatten <axis = -1> (count_is_active)
  count_active = Cast <to = 1> (count_active_rows)
  per_token = ReduceSum <keepdims = 0> (count_active, count_columns)
  per_neuron = ReduceSum <keepdims = 0> (count_active, count_rows)
  count_later = Slice (count_active, count_second, count_end, count_rows)
  count_earlier = Slice (count_active, count_begin, count_last, count_rows)
  count_both = Mul (count_later, count_earlier)
  shared = ReduceSum <keepdims = 0> (count_both, count_columns)
  count_is_zero = {is_zero}
  count_zero_rows = Flatten <axis = -1> (count_is_zero)
  count_zeros = Cast <to = 1> (count_zero_rows)
  zeros = ReduceSum <keepdims = 0> (count_zeros, count_columns)
}}
"""


@dataclass(frozen=True)
class LayerActivity:
    """One sparse FFN over some text.

    Attributes:
        module: the PyTorch module that the operator replaces.
        d_ff: number of neurons.
        per_token: active neurons of each token, ``[tokens]``.
        per_neuron: tokens for which each neuron is active, ``[d_ff]``.
        shared: neurons active for a token and for the previous one, ``[tokens]``; -1 at the start of a window.
        zeros: exact zeros at down_proj's input for each token, ``[tokens]``.
    """

    module: str
    d_ff: int
    per_token: NDArray[np.int64]
    per_neuron: NDArray[np.int64]
    shared: NDArray[np.int64]
    zeros: NDArray[np.int64]

    @property
    def sparsity(self) -> float:
        """Activation sparsity: the fraction of exact zeros at down_proj's input."""
        return float(self.zeros.mean()) / self.d_ff

    @property
    def skipped(self) -> float:
        """Fraction of neurons that are not active; below `sparsity` for dReLU, otherwise equal to it."""
        return float((self.d_ff - self.per_token).mean()) / self.d_ff


@dataclass(frozen=True)
class Activity:
    """All sparse FFNs over some texts.

    Attributes:
        layers: in graph order.
        texts: index of each token's text, ``[tokens]``.
        positions: position of each token in its window, ``[tokens]``.
    """

    layers: tuple[LayerActivity, ...]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def sparsity(self) -> float:
        """Mean activation sparsity over layers, as in section 3.1 of the ProSparse paper."""
        return float(np.mean([layer.sparsity for layer in self.layers]))


def measure_activity(
    path: Path,
    texts: Sequence[NDArray[np.int64]],
    *,
    context: int = 512,
    threads: int | None = None,
    library: bool = True,
    progress: ProgressCallback = no_progress,
) -> Activity:
    """Count active neurons over ``texts`` (token ids each), in non-overlapping windows of ``context`` tokens.

    Args:
        path: the artifact.
        texts: token ids.
        context: tokens per window.
        threads: intra-op threads; None for onnxruntime's default.
        library: run the model with the operator library; without it, in function bodies.
        progress: called before each window.

    Raises:
        ProSparseError: the graph has no sparse operator, or the artifact is an encoder-decoder.
    """
    nodes = ffn_nodes(read_graph(path))
    if not nodes:
        raise ProSparseError(
            f"model: {path}: no sparse FFN operators found",
            hint="export without --decomposed, or without --allow-dense to see why each FFN is dense",
        )
    manifest = read_manifest(path)
    if manifest is not None and manifest.encoder is not None:
        raise ProSparseError(
            f"model: {path}: expected a decoder-only model, got an encoder-decoder",
            hint="run it with `prosparse generate`",
        )
    session = edited_session(path, _add_counts, library=library, threads=threads, has_bodies=True)
    names = [f"prosparse.{kind}.{i}" for i in range(len(nodes)) for kind in _COUNTS]
    parts: list[list[NDArray[np.float32]]] = [[] for _ in names]
    numbers, positions = [], []
    done, total = 0, sum(map(len, texts))
    for number, ids in enumerate(texts):
        for begin in range(0, len(ids), context):
            progress("sparsity", done, total)
            window = ids[begin : begin + context]
            for part, counts in zip(parts, session.run(names, first_feeds(session, window)), strict=True):
                part.append(counts)
            numbers.append(np.full(len(window), number))
            positions.append(np.arange(len(window)))
            done += len(window)
    width = len(_COUNTS)
    layers = tuple(_layer(node, *parts[width * i : width * (i + 1)]) for i, node in enumerate(nodes))
    return Activity(layers, np.concatenate(numbers), np.concatenate(positions))


def _layer(
    node: FfnNode,
    per_token: list[NDArray[np.float32]],
    per_neuron: list[NDArray[np.float32]],
    shared: list[NDArray[np.float32]],
    zeros: list[NDArray[np.float32]],
) -> LayerActivity:
    neurons = np.sum([counts.astype(np.int64) for counts in per_neuron], axis=0)
    return LayerActivity(
        node.module,
        len(neurons),
        np.concatenate(per_token).astype(np.int64),
        neurons,
        np.concatenate([np.append(-1, counts.astype(np.int64)) for counts in shared]),
        np.concatenate(zeros).astype(np.int64),
    )


def _add_counts(model: onnx.ModelProto) -> None:
    """Add a counting node next to each sparse operator; its outputs become the graph's."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    bodies: dict[str, onnx.FunctionProto] = {}
    for i, node in enumerate(ffn_nodes(model)):
        name = f"{node.node.op_type}_{node.activation}"
        if name not in bodies:
            bodies[name] = _counting_body(name, node, opset)
        operator = function_proto(node.node.op_type, opset, node.activation)
        value_of = dict(zip(operator.input, node.node.input, strict=True))
        outputs = [f"prosparse.{kind}.{i}" for kind in _COUNTS]
        inputs = [value_of[name] for name in bodies[name].input]
        counting = onnx.helper.make_node(name, inputs, outputs, domain=_DOMAIN)
        counting.attribute.extend(node.node.attribute)
        model.graph.node.append(counting)
        for output in outputs:
            add_output(model, output)
    model.functions.extend(bodies.values())
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))


def _counting_body(name: str, node: FfnNode, opset: int) -> onnx.FunctionProto:
    """Return the operator's body up to ``inactive`` and, for dReLU, ``h``, followed by the sums."""
    body = function_proto(node.node.op_type, opset, node.activation, portable=True)
    sums = onnx.parser.parse_function(
        _SUMS.format(opset=opset, end=2**62, is_zero=_IS_ZERO.get(node.activation, "Identity (inactive)"))
    )
    needed = {"inactive", "h"} if node.activation == "drelu" else {"inactive"}
    kept = []
    for step in reversed(body.node):
        if needed & set(step.output):
            needed.update(step.input)
            kept.append(step)
    inputs = [value for value in body.input if value in needed]
    steps = [*reversed(kept), *sums.node]
    return onnx.helper.make_function(_DOMAIN, name, inputs, _COUNTS, steps, body.opset_import, list(body.attribute))
