"""What an artifact computes inside: a session whose operators' inputs and outputs are outputs of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from prosparse_export.analysis.debug_session import add_output, edited_session
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.validation.exactness import pad_left
from prosparse_export.validation.linear_nodes import LinearSite

__all__ = ["Probe", "Trace"]

Arrays = tuple[NDArray[np.float32], ...]
Values = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Trace:
    """What an artifact computed for one text.

    Attributes:
        inputs: of each sparse operator, ``[tokens, d_model]``.
        outputs: likewise.
        site_inputs: of each linear layer outside them, ``[tokens, in]``.
        site_outputs: ``[tokens, out]``.
        keys: of each layer, ``[kv_heads, tokens, head_dim]``.
        values: likewise.
        logits: ``[tokens, vocabulary]``.
    """

    inputs: Arrays
    outputs: Arrays
    site_inputs: Arrays
    site_outputs: Arrays
    keys: Arrays
    values: Arrays
    logits: NDArray[np.float32]


class Probe:
    """A session of the artifact that shows what goes into and comes out of its operators.

    Args:
        path: the artifact.
        nodes: its sparse operators.
        sites: linear layers outside them.
        library: register the operator library.
        threads: intra-op threads; None for onnxruntime's default.
        fused: rows of a padded batch are turned left inside the graph (docs/architecture.md).

    Raises:
        ProSparseError: onnxruntime refuses the graph.
    """

    def __init__(
        self,
        path: Path,
        nodes: Sequence[FfnNode],
        sites: Sequence[LinearSite],
        *,
        library: bool,
        threads: int | None,
        fused: bool,
    ) -> None:
        self._nodes, self._sites, self._fused = nodes, sites, fused
        names = [name for node in nodes for name in (node.node.input[0], node.node.output[0])]
        names += [name for site in sites for name in (site.x, site.y)]

        def edit(model: onnx.ModelProto) -> None:
            for name in names:
                add_output(model, name)

        self._session = edited_session(path, edit, library=library, threads=threads)

    def run(self, ids: NDArray[np.int64], first: int, step: int = 1) -> Trace:
        """Run one text, ``[tokens]``: ``first`` tokens at once, then ``step`` at a time."""
        parts: list[Trace] = []
        past = None
        begin, width = 0, first
        while begin < len(ids):
            chunk = ids[begin : begin + width]
            out = self._run(chunk[None], np.ones((1, begin + len(chunk)), np.int64), past)
            parts.append(self._trace(out, 0, 1, len(chunk), len(chunk)))
            past = {name: value for name, value in out.items() if name.startswith("present.")}
            begin, width = begin + len(chunk), step
        return _joined(parts, past or {})

    def run_padded(self, texts: Sequence[NDArray[np.int64]]) -> list[Trace]:
        """Run texts of different lengths as one batch, padded on the left."""
        rows, mask = pad_left(texts)
        out = self._run(rows, mask, None)
        return [self._trace(out, row, len(texts), len(text), rows.shape[1]) for row, text in enumerate(texts)]

    def _run(self, ids: NDArray[np.int64], mask: NDArray[np.int64], present: Values | None) -> Values:
        feeds: dict[str, NDArray[np.generic]] = {"input_ids": ids, "attention_mask": mask}
        past = 0
        for value in self._session.get_inputs():
            if value.name.startswith("past_key_values."):
                empty = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
                name = value.name.replace("past_key_values.", "present.")
                feeds[value.name] = empty if present is None else present[name]
                past = feeds[value.name].shape[2]
        if any(value.name == "position_ids" for value in self._session.get_inputs()):
            feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _trace(self, out: Values, row: int, batch: int, tokens: int, width: int) -> Trace:
        """Cut one row's tokens out of a run of ``width`` columns."""
        right = slice(width - tokens, None)
        inside = slice(0, tokens) if self._fused else right

        def of(name: str, place: slice) -> NDArray[np.float32]:
            value = out[name]
            return value.reshape(batch, -1, value.shape[-1])[row, place]

        at = [right if site.y == "logits" else inside for site in self._sites]  # rows are turned back before lm_head
        count = sum(name.startswith("present.") and name.endswith(".key") for name in out)
        cache = [tuple(out[f"present.{i}.{kind}"][row][:, inside] for i in range(count)) for kind in ("key", "value")]
        return Trace(
            tuple(of(node.node.input[0], inside) for node in self._nodes),
            tuple(of(node.node.output[0], inside) for node in self._nodes),
            tuple(of(site.x, place) for site, place in zip(self._sites, at, strict=True)),
            tuple(of(site.y, place) for site, place in zip(self._sites, at, strict=True)),
            cache[0],
            cache[1],
            out["logits"][row, right],
        )


def _joined(parts: Sequence[Trace], last: Values) -> Trace:
    """Put the parts of one text together; the cache is the last part's, whole."""
    count = len(parts[0].keys)
    cache = {kind: tuple(last[f"present.{i}.{kind}"][0] for i in range(count)) for kind in ("key", "value")}
    values: dict[str, Arrays | NDArray[np.float32]] = {"keys": cache["key"], "values": cache["value"]}
    for name in (f.name for f in fields(Trace) if f.name not in ("keys", "values", "logits")):
        values[name] = tuple(map(np.concatenate, zip(*(getattr(part, name) for part in parts), strict=True)))
    logits = np.concatenate([part.logits for part in parts])
    return Trace(**values, logits=logits)  # type: ignore[arg-type]
