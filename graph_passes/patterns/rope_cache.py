"""RoPE's cos/sin cache, for graphs that compute cos and sin from position_ids alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes.patterns.linear import constant_array, scalar_constant
from graph_passes.patterns.standard_nodes import producer

__all__ = ["MOST_BYTES", "RopeCaches", "rope_cache"]

_MOST_FREQUENCIES = 4096
MOST_BYTES = 128 << 20
"""Of a cache: 131,072 positions take 32 MiB with head_dim 128 and 64 MiB with 256."""

_KEEPS_POSITIONS = frozenset({"Cast", "Unsqueeze", "GatherElements", "Identity"})


class RopeCaches:
    """The cos/sin caches that one run of a pass adds to ``graph``.

    Args:
        graph: receives the initializers.
        positions: rows of a cache, or None if the context length is unknown.

    Attributes:
        too_large: bytes of the largest cache that was not built because of its size; 0 if there was none.
    """

    def __init__(self, graph: ir.Graph, positions: int | None) -> None:
        self._graph = graph
        self._positions = positions
        self.too_large = 0
        self._made: dict[tuple[str, bytes, float], ir.Value] = {}

    def cache(self, per_token: ir.Value | None, function: str) -> ir.Value | None:
        """Return an initializer ``[positions, head_dim / 2]`` with the values that ``per_token`` has for each token.

        None if the cache would be large, or if an angle is not simply position times a constant frequency, but scaled
        by the sequence length, for example.

        Args:
            per_token: cache input of RotaryEmbedding: one row of ``Cos`` or ``Sin`` per token (fuse_rotary.py).
            function: Cos or Sin.
        """
        found = _frequencies(per_token, function)
        if found is None or self._positions is None:
            return None
        frequencies, scale = found
        if (size := self._positions * frequencies.nbytes) > MOST_BYTES:
            self.too_large = max(size, self.too_large)
            return None
        key = (function, frequencies.tobytes(), scale)
        if key not in self._made:
            values = rope_cache(function.lower(), frequencies, self._positions, scale)
            tensor = ir.tensor(values, name=f"prosparse.rotary_{function.lower()}.{len(self._made) // 2}")
            self._made[key] = tape.Tape(self._graph).initializer(tensor)
        return self._made[key]


def rope_cache(function: str, frequencies: NDArray[np.float32], positions: int, scale: float) -> NDArray[np.float32]:
    """Return ``scale * function(position * frequency)`` as float32, ``[positions, frequencies]``.

    Angles are float32, as in PyTorch. cos and sin are computed in float64, so that every processor gives the same bits.

    Args:
        function: cos or sin.
        frequencies: one for each pair of a head's elements.
        positions: number of rows, counted from position 0.
        scale: attention factor of scaled RoPE.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    exact = (np.cos if function == "cos" else np.sin)(angles.astype(np.float64))
    values: NDArray[np.float32] = exact.astype(np.float32) * np.float32(scale)
    return values


def _frequencies(cache: ir.Value | None, function: str) -> tuple[NDArray[np.float32], float] | None:
    """Return the frequencies ``[head_dim / 2]`` and the scale behind ``cache``."""
    for op_type in ("Reshape", "Slice"):  # the first half of a row
        node = producer(cache, op_type)
        cache = node.inputs[0] if node is not None else None
    scale = 1.0
    node = producer(cache, "Mul")
    if node is not None:
        number = next((n for n in map(scalar_constant, node.inputs) if n is not None), None)
        cache = next((v for v in node.inputs if v is not None and scalar_constant(v) is None), None)
        if number is None:
            return None
        scale = number
    curve = producer(cache, function)
    halves = producer(curve.inputs[0], "Concat") if curve is not None else None
    angle = producer(halves.inputs[0], "Mul") if halves is not None else None
    if angle is None:
        return None
    for position, frequency in (angle.inputs, angle.inputs[::-1]):
        frequencies = constant_array(frequency, most=_MOST_FREQUENCIES)
        if frequencies is not None and frequencies.dtype == np.float32 and _is_position(position):
            return frequencies.reshape(-1), scale
    return None


def _is_position(value: ir.Value | None) -> bool:
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _KEEPS_POSITIONS:
            return False
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) not in (ir.DataType.FLOAT, ir.DataType.INT64):
            return False
        value = node.inputs[0]
    return value is not None and value.name == "position_ids"
