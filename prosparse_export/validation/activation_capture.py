"""Capture the inputs and outputs of an artifact's operators, in a session that has them as graph outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from prosparse_export.analysis.cache_scales import LayerScales, cached_values
from prosparse_export.analysis.debug_session import add_output, edited_session
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.runtime.cache import cache_inputs
from prosparse_export.validation.exactness import pad_left
from prosparse_export.validation.linear_nodes import LinearNode

__all__ = ["ActivationCapture", "CapturedActivations"]

Arrays = tuple[NDArray[np.float32], ...]
Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CapturedActivations:
    """Values that an artifact computed for one text.

    Attributes:
        inputs: input of each sparse operator, ``[tokens, d_model]``.
        outputs: output of each sparse operator, likewise.
        linear_inputs: input of each linear layer outside sparse operators, ``[tokens, d_in]``.
        linear_outputs: output of each such layer, ``[tokens, d_out]``.
        keys: keys of each layer, ``[kv_heads, tokens, head_dim]``.
        values: values, likewise.
        logits: ``[tokens, vocabulary]``.
    """

    inputs: Arrays
    outputs: Arrays
    linear_inputs: Arrays
    linear_outputs: Arrays
    keys: Arrays
    values: Arrays
    logits: NDArray[np.float32]


class ActivationCapture:
    """A session of the artifact that returns its operators' inputs and outputs.

    Args:
        path: the artifact.
        nodes: its sparse operators.
        linears: linear layers outside them.
        library: whether to register the operator library.
        threads: intra-op threads; None for onnxruntime's default.
        fused: the graph left-aligns the rows of a padded batch (docs/architecture.md).
        scales: scales of an 8-bit KV cache, from `cache_scales`.

    Raises:
        ProSparseError: onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        path: Path,
        nodes: Sequence[FfnNode],
        linears: Sequence[LinearNode],
        *,
        library: bool,
        threads: int | None,
        fused: bool,
        scales: Sequence[LayerScales] = (),
    ) -> None:
        self._nodes, self._linears, self._fused, self._scales = nodes, linears, fused, scales
        names = [name for node in nodes for name in (node.node.input[0], node.output)]
        names += [name for linear in linears for name in (linear.x, linear.y)]

        def edit(model: onnx.ModelProto) -> None:
            for name in names:
                add_output(model, name)

        self._session = edited_session(path, edit, library=library, threads=threads)

    def run(self, ids: NDArray[np.int64], first: int, step: int = 1) -> CapturedActivations:
        """Run ``ids``, ``[tokens]``: a prefill of ``first`` tokens, then ``step`` tokens at a time."""
        parts: list[CapturedActivations] = []
        past = None
        begin, width = 0, first
        while begin < len(ids):
            chunk = ids[begin : begin + width]
            out = self._run(chunk[None], np.ones((1, begin + len(chunk)), np.int64), past)
            parts.append(self._cut(out, 0, 1, len(chunk), len(chunk)))
            past = {name: value for name, value in out.items() if name.startswith("present.")}
            begin, width = begin + len(chunk), step
        return _joined(parts, _cache(past or {}, self._scales, 0))

    def run_padded(self, texts: Sequence[NDArray[np.int64]]) -> list[CapturedActivations]:
        """Run texts of different lengths as one left-padded batch."""
        rows, mask = pad_left(texts)
        out = self._run(rows, mask, None)
        return [self._cut(out, row, len(texts), len(text), rows.shape[1]) for row, text in enumerate(texts)]

    def _run(self, ids: NDArray[np.int64], mask: NDArray[np.int64], present: Values | None) -> Values:
        feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, "attention_mask": mask}
        past = 0
        for name, value in cache_inputs(self._session).items():
            own = name.replace("past_key_values.", "present.")
            cached = value.array(len(ids), 0) if present is None else present[own]
            past = cached.shape[2]
            feeds[name] = value.with_room(cached, ids.shape[1])
        if any(value.name == "position_ids" for value in self._session.get_inputs()):
            feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _cut(self, out: Values, row: int, batch: int, tokens: int, width: int) -> CapturedActivations:
        """Return one row's tokens of a run of ``width`` columns."""
        right = slice(width - tokens, None)
        inside = slice(0, tokens) if self._fused else right

        def of(name: str, place: slice) -> NDArray[np.float32]:
            value = out[name]
            return value.reshape(batch, -1, value.shape[-1])[row, place]

        at = [
            right if linear.y == "logits" else inside for linear in self._linears
        ]  # rows are padded again before lm_head
        keys, values = _cache(out, self._scales, row)
        return CapturedActivations(
            tuple(of(node.node.input[0], inside) for node in self._nodes),
            tuple(of(node.output, inside) for node in self._nodes),
            tuple(of(linear.x, place) for linear, place in zip(self._linears, at, strict=True)),
            tuple(of(linear.y, place) for linear, place in zip(self._linears, at, strict=True)),
            tuple(array[:, inside] for array in keys),
            tuple(array[:, inside] for array in values),
            out["logits"][row, right],
        )


def _cache(out: Values, scales: Sequence[LayerScales], row: int) -> tuple[Arrays, Arrays]:
    """Return one row's keys and values of every layer as float32, ``[kv_heads, tokens, head_dim]``."""
    count = sum(name.startswith("present.") and name.endswith(".key") for name in out)
    kinds: list[Arrays] = []
    for place, kind in enumerate(("key", "value")):
        arrays = [out[f"present.{i}.{kind}"][row : row + 1] for i in range(count)]
        if scales:
            arrays = [cached_values(array, scales[i][place]) for i, array in enumerate(arrays)]
        kinds.append(tuple(array[0] for array in arrays))
    return kinds[0], kinds[1]


def _joined(parts: Sequence[CapturedActivations], cache: tuple[Arrays, Arrays]) -> CapturedActivations:
    """Join the parts of one text, with the ``cache`` after the last."""
    values: dict[str, Arrays | NDArray[np.float32]] = {"keys": cache[0], "values": cache[1]}
    for name in (f.name for f in fields(CapturedActivations) if f.name not in ("keys", "values", "logits")):
        values[name] = tuple(map(np.concatenate, zip(*(getattr(part, name) for part in parts), strict=True)))
    logits = np.concatenate([part.logits for part in parts])
    return CapturedActivations(**values, logits=logits)  # type: ignore[arg-type]
