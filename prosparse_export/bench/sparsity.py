"""Sparsity of each block over some tokens, without the dense bodies, which would need the weights in float32.

The blocks' inputs are taken out of a run with the library; their gates are computed here from the stored weights, a
part at a time. A neuron counts as active if its activation is not zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graph_passes import dequantize, is_quantized
from prosparse_export.analysis.debug_session import add_output, edited_session, first_feeds
from prosparse_export.analysis.ffn_nodes import FfnNode, initializer
from prosparse_export.progress import ProgressCallback

__all__ = ["measure_sparsity"]

_ROWS = 1024


def measure_sparsity(
    path: Path,
    model: onnx.ModelProto,
    nodes: list[FfnNode],
    ids: NDArray[np.int64],
    *,
    threads: int,
    progress: ProgressCallback,
) -> list[float]:
    """Return the share of inactive neurons of each block for the tokens ``ids``, ``[tokens]``."""
    names = [node.node.input[0] for node in nodes]

    def edit(graph: onnx.ModelProto) -> None:
        for name in names:
            add_output(graph, name)

    session = edited_session(path, edit, library=True, threads=threads)
    inputs = session.run(names, first_feeds(session, ids))
    del session
    result = []
    for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
        progress("sparsity", i, len(nodes))
        rows = x.reshape(-1, x.shape[-1])
        result.append(1.0 - _active(path, model, node, rows))
    return result


def _active(path: Path, model: onnx.ModelProto, node: FfnNode, x: NDArray[np.float32]) -> float:
    quantized = is_quantized(node.weights)
    per_matrix = 3 if quantized else 2  # weights, scales, bias
    deciding = 2 if node.activation == "drelu" else 1  # both gate and up, or the first matrix alone
    read: list[Any] = [initializer(model, path.parent, name) for name in node.node.input[1 : 1 + deciding * per_matrix]]
    matrices = [read[k : k + per_matrix] for k in range(0, len(read), per_matrix)]
    rows: int = matrices[0][0].shape[0]
    active = 0
    for begin in range(0, rows, _ROWS):
        part = slice(begin, begin + _ROWS)
        fires = np.ones((len(x), 1), bool)
        for stored, *scales, bias in matrices:
            weights = dequantize(stored[part], scales[0][part], x.shape[1]) if quantized else stored[part]
            fires = fires & (x @ weights.astype(np.float32).T + bias[part].astype(np.float32) > node.threshold)
        active += int(fires.sum())
    return active / (len(x) * rows)
