"""A model of one attention operator with its function body, and the operator in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graph_passes import custom_ops, function_bodies

Feeds = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Case:
    """Sizes of an operator: pairs of a head's elements that RoPE rotates (0: without RoPE), window (0: all)."""

    heads: int
    kv_heads: int
    dim: int
    pairs: int = 0
    window: int = 0
    positions: int = 2048
    cache: custom_ops.CacheFormat = "I8"

    @property
    def scale(self) -> float:
        return float(np.float32(self.dim**-0.5))

    @property
    def row(self) -> int:
        """Elements of a cached key: in 8 bits, the values and two bytes for each 32 of them, by the documentation."""
        return self.dim + (2 * ((self.dim + 31) // 32) if self.cache == "I8" else 0)

    @property
    def dtype(self) -> type[np.generic]:
        """The cache's."""
        return np.int8 if self.cache == "I8" else np.float32

    def angles(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The cos/sin cache, ``[positions, pairs]``."""
        angles = np.arange(self.positions)[:, None] * 100.0 ** (-np.arange(self.pairs) / max(self.pairs, 1))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def model(self) -> onnx.ModelProto:
        """The operator alone, with dynamic batch, tokens and slots."""
        op = custom_ops.cached_attention(self.cache, rotary=self.pairs > 0)
        cache = ["batch", self.kv_heads, "past", self.row]
        present = ["batch", self.kv_heads, "slots", self.row]
        value, f32, i32 = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT32
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = [
            value("qkv", f32, ["batch", "tokens", (self.heads + 2 * self.kv_heads) * self.dim]),
            value("past_key", kind, cache),
            value("past_value", kind, cache),
            value("seqlens_k", i32, ["batch"]),
            value("total_sequence_length", i32, []),
        ]
        outputs = [value("y", f32, ["batch", "tokens", self.heads * self.dim])]
        outputs += [value("present_key", kind, present), value("present_value", kind, present)]
        constants = dict(zip(("cos", "sin"), self.angles(), strict=True)) if self.pairs else {}
        node = helper.make_node(
            op,
            [*(one.name for one in inputs), *constants],
            [one.name for one in outputs],
            domain=custom_ops.DOMAIN,
            name="attention",
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            scale=self.scale,
            local_window_size=self.window or (0 if self.cache == "I8" else -1),
        )
        graph = helper.make_graph(
            [node], "g", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in constants.items()]
        )
        opsets = [helper.make_opsetid("", custom_ops.OPSET), helper.make_opsetid(custom_ops.DOMAIN, custom_ops.VERSION)]
        opsets += [helper.make_opsetid("com.microsoft", 1)] if self.cache == "F32" else []
        return helper.make_model(
            graph, opset_imports=opsets, functions=[function_bodies.function_proto(op)], ir_version=9
        )

    def feeds(
        self, rng: np.random.Generator, lengths: list[int], tokens: int, past: list[NDArray[np.generic]] | None
    ) -> Feeds:
        """Random projections of ``tokens`` new tokens; ``lengths`` with them; ``past`` as returned, or None.

        With a window, the past gets room for the new tokens, so that slots are positions.
        """
        empty = [np.zeros((len(lengths), self.kv_heads, 0, self.row), self.dtype)] * 2
        grows = past is not None and self.window > 0 and self.cache == "I8"
        more = max(0, max(lengths) - past[0].shape[2]) if grows and past else 0
        key, value = (np.pad(rows, ((0, 0), (0, 0), (0, more), (0, 0))) for rows in past or empty)
        width = (self.heads + 2 * self.kv_heads) * self.dim
        return {
            "qkv": rng.standard_normal((len(lengths), tokens, width)).astype(np.float32),
            "past_key": key,
            "past_value": value,
            "seqlens_k": np.array(lengths, np.int32) - 1,
            "total_sequence_length": np.array(max(*lengths, key.shape[2]), np.int32),
        }


def run(session: onnxruntime.InferenceSession, feeds: Feeds) -> tuple[NDArray[np.float32], list[Any]]:
    """Return ``y``, and keys and values."""
    y, *present = session.run(None, feeds)
    return y, present


def assert_within(actual: NDArray[np.generic], expected: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    """Check every element; a NaN fails."""
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected) - bound
    assert not (~(worst <= 0)).any(), f"{worst.max()} beyond the bound"


def stored(rows: NDArray[np.generic], dim: int) -> NDArray[np.float64]:
    """Keys or values in a cache, decoded by the documentation's words."""
    if rows.dtype == np.float32:
        return rows.astype(np.float64)
    groups = (dim + 31) // 32
    scales = np.zeros((*rows.shape[:-1], groups))
    for group in range(groups):
        bits = rows[..., dim + 2 * group : dim + 2 * group + 2].astype(np.uint8).astype(np.uint32)
        scales[..., group] = ((bits[..., 0] | bits[..., 1] << 8) << 16).astype(np.uint32).view(np.float32)
    return rows[..., :dim] * np.repeat(scales, 32, -1)[..., :dim]


def exact(
    case: Case, feeds: Feeds, present: list[NDArray[np.generic]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``y`` in float64 from the cache as it is now, and a bound on float32's error (forward error analysis)."""
    qkv = feeds["qkv"].astype(np.float64)
    batch, tokens = qkv.shape[:2]
    group, u = case.heads // case.kv_heads, 2.0**-24
    queries = qkv.reshape(batch, tokens, -1, case.dim)[:, :, : case.heads]
    keys, values = (stored(rows, case.dim) for rows in present)
    y = np.zeros((batch, tokens, case.heads, case.dim))
    bound = np.zeros_like(y)
    cos, sin = (angles.astype(np.float64) for angles in case.angles())
    for row, last in enumerate(feeds["seqlens_k"].tolist()):
        new = min(tokens, last + 1)
        for token in range(new):
            position = last + 1 - new + token
            q = queries[row, token].copy()
            low, high = q[:, : case.pairs].copy(), q[:, case.pairs : 2 * case.pairs].copy()
            q[:, : case.pairs] = low * cos[position] - high * sin[position]
            q[:, case.pairs : 2 * case.pairs] = high * cos[position] + low * sin[position]
            turned = np.abs(q).max() + np.abs(queries[row, token]).max()
            first = max(position + 1 - case.window, 0) if case.window else 0
            k = keys[row, :, first : position + 1].repeat(group, 0)  # [heads, seen, dim]
            v = values[row, :, first : position + 1].repeat(group, 0)
            scores = np.einsum("hd,htd->ht", q, k) * case.scale
            # RoPE and scale: 4 roundings; a query alone is rounded to 16 bits; then a sum of dim products.
            sizes = np.abs(k).sum(-1) * turned * case.scale
            off = ((case.dim + 8) * u + (0.5 / 32639 if case.cache == "I8" else 0.0)) * sizes
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            total = weights.sum(-1, keepdims=True)
            y[row, token] = np.einsum("ht,htd->hd", weights / total, v)
            # exp: the scores' error twice (its own and the largest one's) and 4 units; sums of as many terms as seen.
            relative = np.expm1(2 * off.max(-1)) + (8 + 2 * (position + 1)) * u
            bound[row, token] = 2 * relative[:, None] * np.einsum("ht,htd->hd", weights / total, np.abs(v)) + 1e-30
    return y.reshape(batch, tokens, -1), bound.reshape(batch, tokens, -1)
