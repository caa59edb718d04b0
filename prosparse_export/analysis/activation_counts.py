"""Which neurons an artifact's feed-forward blocks use, counted inside the graph.

A copy of the graph is run in which each sparse operator's function body, under a name that no library registers,
also gives how many of its hidden values are not exactly zero: per token, per neuron, and shared with the token
before. So the count is of the artifact's own numbers, and no hidden activation leaves the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from graph_passes.custom_ops import DOMAIN
from prosparse_export.analysis.debug_session import add_output, edited_session, first_feeds
from prosparse_export.analysis.ffn_nodes import FfnNode, ffn_nodes, read_graph
from prosparse_export.artifact.writer import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["Activity", "LayerActivity", "measure_activity"]

_DOMAIN = f"{DOMAIN}.activity"
_COUNTS = ("per_token", "per_neuron", "shared")


@dataclass(frozen=True)
class LayerActivity:
    """One sparse operator over a text.

    Attributes:
        module: the PyTorch module that it replaces.
        d_ff: its neurons.
        per_token: active neurons of each token, ``[tokens]``.
        per_neuron: tokens for which each neuron is active, ``[d_ff]``.
        shared: neurons active for a token and for the one before, ``[tokens]``; -1 for a window's first.
    """

    module: str
    d_ff: int
    per_token: NDArray[np.int64]
    per_neuron: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def sparsity(self) -> float:
        """Share of exact zeros at down_proj's input."""
        return 1 - float(self.per_token.mean()) / self.d_ff


@dataclass(frozen=True)
class Activity:
    """All sparse operators over some texts.

    Attributes:
        layers: in the graph's order.
        texts: for each token the number of its text, ``[tokens]``.
        positions: for each token its place in its window, ``[tokens]``.
    """

    layers: tuple[LayerActivity, ...]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]

    @property
    def sparsity(self) -> float:
        """Mean over layers, as the ProSparse paper has it (section 3.1)."""
        return float(np.mean([layer.sparsity for layer in self.layers]))


def measure_activity(
    path: Path,
    texts: Sequence[NDArray[np.int64]],
    *,
    context: int = 512,
    threads: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Activity:
    """Count over ``texts`` (token ids each), in windows of ``context`` tokens that do not overlap.

    Raises:
        ProSparseError: the graph has no sparse operator.
    """
    nodes = ffn_nodes(read_graph(path))
    if not nodes:
        raise ProSparseError(
            f"model: {path}: expected sparse feed-forward operators, got none",
            hint="export it without --decomposed, or without --allow-dense to see why no block is sparse",
        )
    if "encoder" in read_manifest(path):
        raise ProSparseError(
            f"model: {path}: expected a decoder alone, got an encoder-decoder, which reads no running text",
            hint="`prosparse generate` runs it",
        )
    session = edited_session(path, _count_in_bodies, library=False, threads=threads)
    names = [[f"prosparse.{kind}.{i}" for kind in _COUNTS] for i in range(len(nodes))]
    parts: list[list[list[NDArray[np.float32]]]] = [[[], [], []] for _ in nodes]
    numbers, positions = [], []
    done, total = 0, sum(map(len, texts))
    for number, ids in enumerate(texts):
        for begin in range(0, len(ids), context):
            progress("sparsity", done, total)
            window = ids[begin : begin + context]
            outputs = session.run([name for layer in names for name in layer], first_feeds(session, window))
            for i, part in enumerate(parts):
                for k in range(len(_COUNTS)):
                    part[k].append(outputs[len(_COUNTS) * i + k])
            numbers.append(np.full(len(window), number))
            positions.append(np.arange(len(window)))
            done += len(window)
    layers = tuple(_layer(node, *part) for node, part in zip(nodes, parts, strict=True))
    return Activity(layers, np.concatenate(numbers), np.concatenate(positions))


def _layer(
    node: FfnNode,
    per_token: list[NDArray[np.float32]],
    per_neuron: list[NDArray[np.float32]],
    shared: list[NDArray[np.float32]],
) -> LayerActivity:
    tokens = np.concatenate(per_token).astype(np.int64)
    neurons = np.sum([counts.astype(np.int64) for counts in per_neuron], axis=0)
    both = np.concatenate([np.append(-1, counts.astype(np.int64)) for counts in shared])
    return LayerActivity(node.module, len(neurons), tokens, neurons, both)


def _count_in_bodies(model: onnx.ModelProto) -> None:
    counting = []
    for function in model.functions:
        if function.domain == DOMAIN and "FFN" in function.name:
            counting.append(onnx.FunctionProto())
            counting[-1].CopyFrom(function)
            _count_in(counting[-1])
    model.functions.extend(counting)
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    for i, node in enumerate(ffn_nodes(model)):
        node.node.domain = _DOMAIN
        for kind in _COUNTS:
            name = f"prosparse.{kind}.{i}"
            node.node.output.append(name)
            add_output(model, name)


def _count_in(body: onnx.FunctionProto) -> None:
    """Let a body also give the counts of what its last product takes in: down_proj's input."""
    made_by = {output: node for node in body.node for output in node.output}
    last = made_by[body.output[0]]
    while last.op_type != "MatMul":
        last = made_by[last.input[0]]
    hidden = last.input[0]
    make = onnx.helper.make_node
    constant = onnx.helper.make_tensor

    def const(name: str, values: list[int]) -> onnx.NodeProto:
        return make("Constant", [], [name], value=constant(name, onnx.TensorProto.INT64, [len(values)], values))

    body.node.extend(
        [
            make("Constant", [], ["act_zero"], value=constant("act_zero", 1, [], [0.0])),
            const("act_first_axis", [0]),
            const("act_last_axis", [1]),
            const("act_one", [1]),
            const("act_minus_one", [-1]),
            const("act_begin", [0]),
            const("act_end", [2**62]),
            make("Flatten", [hidden], ["act_rows"], axis=-1),
            make("Equal", ["act_rows", "act_zero"], ["act_is_zero"]),
            make("Not", ["act_is_zero"], ["act_is_active"]),
            make("Cast", ["act_is_active"], ["act_active"], to=1),
            make("ReduceSum", ["act_active", "act_last_axis"], ["act_per_token"], keepdims=0),
            make("ReduceSum", ["act_active", "act_first_axis"], ["act_per_neuron"], keepdims=0),
            make("Slice", ["act_active", "act_one", "act_end", "act_first_axis"], ["act_later"]),
            make("Slice", ["act_active", "act_begin", "act_minus_one", "act_first_axis"], ["act_earlier"]),
            make("Mul", ["act_later", "act_earlier"], ["act_both"]),
            make("ReduceSum", ["act_both", "act_last_axis"], ["act_shared"], keepdims=0),
        ]
    )
    body.domain = _DOMAIN
    body.output.extend(["act_per_token", "act_per_neuron", "act_shared"])
