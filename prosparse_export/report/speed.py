"""Time each sparse operator for one token, against its function body on stock onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.debug_session import add_output, edited_session, first_feeds
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.progress import ProgressCallback, no_progress

__all__ = ["LayerSpeed", "measure_speed"]

_ROUNDS = 15
_TOKENS = 16


@dataclass(frozen=True)
class LayerSpeed:
    """One operator in its own session, one token per call, sparse and dense alternating.

    Attributes:
        sparse_us: median time of a call with the operator library, in microseconds.
        dense_us: the same without it, where onnxruntime runs the operator's function body.
        ratio: median over rounds of dense / sparse.
        ratio_low: first quartile.
        ratio_high: third quartile.
    """

    sparse_us: float
    dense_us: float
    ratio: float
    ratio_low: float
    ratio_high: float


def measure_speed(
    path: Path,
    nodes: Sequence[FfnNode],
    ids: NDArray[np.int64],
    *,
    threads: int | None,
    progress: ProgressCallback = no_progress,
) -> Iterator[LayerSpeed]:
    """Yield each operator's times on the inputs that it receives for the tokens ``ids``."""
    inputs = _inputs(path, nodes, ids, threads)
    for i, node in enumerate(nodes):
        progress("speed", i, len(nodes))
        sessions = [_alone(path, node, library=library, threads=threads) for library in (True, False)]
        rows = inputs[i]
        rounds = [[_round(session, rows) for session in sessions] for _ in range(_ROUNDS + 1)][1:]
        times = np.asarray(rounds)
        low, middle, high = np.quantile(times[:, 1] / times[:, 0], [0.25, 0.5, 0.75])
        sparse, dense = np.median(times, axis=0) * 1e6 / len(rows)
        yield LayerSpeed(float(sparse), float(dense), float(middle), float(low), float(high))


def _inputs(
    path: Path, nodes: Sequence[FfnNode], ids: NDArray[np.int64], threads: int | None
) -> list[list[NDArray[np.float32]]]:
    """Return each operator's inputs for single tokens."""
    names = [node.node.input[0] for node in nodes]

    def edit(model: onnx.ModelProto) -> None:
        for name in names:
            add_output(model, name)

    session = edited_session(path, edit, library=True, threads=threads)
    values = session.run(names, first_feeds(session, ids))
    result = []
    for value in values:
        rows = value.reshape(-1, value.shape[-1])[-_TOKENS:]
        shape = (1,) * (value.ndim - 1) + (value.shape[-1],)
        result.append([np.ascontiguousarray(row).reshape(shape) for row in rows])
    return result


def _alone(path: Path, node: FfnNode, *, library: bool, threads: int | None) -> onnxruntime.InferenceSession:
    """Open a graph that consists of one operator, with the artifact's weights."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        keep = set(node.node.input)
        initializers = [t for t in graph.initializer if t.name in keep]
        shape = [v for v in graph.value_info if v.name in (node.node.input[0], node.node.output[0])]
        for field in ("node", "initializer", "input", "output", "value_info"):
            graph.ClearField(field)
        graph.node.append(node.node)
        graph.initializer.extend(initializers)
        rank = next((len(v.type.tensor_type.shape.dim) for v in shape if v.name == node.node.input[0]), 3)
        width = next(t.dims[-1] for t in initializers if t.name == node.node.input[-1])
        dims = [f"d{k}" for k in range(rank - 1)] + [width]
        graph.input.append(onnx.helper.make_tensor_value_info(node.node.input[0], 1, dims))
        graph.output.append(onnx.helper.make_tensor_value_info(node.node.output[0], 1, dims))

    return edited_session(path, edit, library=library, threads=threads)


def _round(session: onnxruntime.InferenceSession, rows: list[NDArray[np.float32]]) -> float:
    name = session.get_inputs()[0].name
    began = time.perf_counter()
    for row in rows:
        session.run(None, {name: row})
    return time.perf_counter() - began
