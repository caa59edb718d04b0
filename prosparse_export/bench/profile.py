"""Attribute decode time to sparse FFNs and other operators with onnxruntime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.runtime.model import SparseModel

__all__ = ["profile_decode"]

_KERNEL_TIME = "_kernel_time"  # suffix of the events that hold a node's time


def profile_decode(
    path: Path, nodes: list[FfnNode], ids: NDArray[np.int64], context: int, *, threads: int
) -> tuple[list[float], dict[str, float]]:
    """Decode ``ids[context:]`` after a prefill of the tokens before.

    Returns:
        microseconds per token of each sparse FFN, in order, and of all other nodes by operator type, largest first.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "decode")
        model = SparseModel.open(path, session_options=options)
        decoder = model.decoder(1, len(ids))
        decoder.prefill(ids[None, :context], np.ones((1, context), np.int64))
        for token in ids[context:]:
            decoder.step(np.array([token]))
        events = json.loads(Path(model.session.end_profiling()).read_text(encoding="utf-8"))
    index_of = {node.module: i for i, node in enumerate(nodes)}
    begin = _decode_begin(events, len(ids) - context)
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_TIME) and event["ts"] >= begin:
            key = (event["name"].removesuffix(_KERNEL_TIME), event["args"].get("op_name", "?"))
            durations[key].append(event["dur"])
    ffns = [0.0] * len(nodes)
    others: dict[str, float] = defaultdict(float)
    for (name, op), times in durations.items():
        if name in index_of:
            ffns[index_of[name]] = float(np.median(times))  # a mean would include the moments of other processes
        else:
            others[op] += float(np.median(times))
    return ffns, dict(sorted(others.items(), key=lambda item: -item[1]))


def _decode_begin(events: list[dict[str, object]], steps: int) -> float:
    """Return the timestamp of the first decode step; the runs before it are prefill."""
    runs = sorted(float(e["ts"]) for e in events if e.get("name") == "model_run")  # type: ignore[arg-type]
    return runs[-steps]
