"""cos and sin of rotary embedding for every position, where the graph computes them from position_ids alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes.patterns.linear import constant_array, scalar_constant
from graph_passes.patterns.standard_nodes import producer

__all__ = ["PositionTables", "position_table"]

_MOST_FREQUENCIES = 4096
# Of a table: 131,072 positions with heads of 128. Of a model for a million it would be half the file.
_MOST_BYTES = 32 << 20
_KEEPING = frozenset({"Cast", "Unsqueeze", "GatherElements", "Identity"})  # what a token's position goes through


class PositionTables:
    """The tables that one run of a pass adds to ``graph``.

    Args:
        graph: to which they are added.
        positions: rows of a table, or None if no longest text is known.
    """

    def __init__(self, graph: ir.Graph, positions: int | None) -> None:
        self._graph = graph
        self._positions = positions
        self._made: dict[tuple[str, bytes, float], ir.Value] = {}

    def table(self, cache: ir.Value | None, function: str) -> ir.Value | None:
        """Return an initializer ``[positions, head_dim / 2]`` that has what ``cache`` has for each token.

        None where the table would be large, or the angles are more than position times a constant frequency: scaled by
        the length of the text, say.

        Args:
            cache: input of RotaryEmbedding: rows of ``Cos`` or ``Sin`` (fuse_rotary.py).
            function: Cos or Sin.
        """
        found = _frequencies(cache, function)
        if found is None or self._positions is None:
            return None
        frequencies, scale = found
        if self._positions * frequencies.nbytes > _MOST_BYTES:
            return None
        key = (function, frequencies.tobytes(), scale)
        if key not in self._made:
            values = position_table(function.lower(), frequencies, self._positions, scale)
            tensor = ir.tensor(values, name=f"prosparse.rotary_{function.lower()}.{len(self._made) // 2}")
            self._made[key] = tape.Tape(self._graph).initializer(tensor)
        return self._made[key]


def position_table(
    function: str, frequencies: NDArray[np.float32], positions: int, scale: float
) -> NDArray[np.float32]:
    """Return ``scale * function(position * frequency)`` as float32, ``[positions, frequencies]``.

    The angles are float32 numbers, as PyTorch has them; their function is computed in float64, so that no processor
    gives other bits.

    Args:
        function: cos or sin.
        frequencies: of each pair of a head's elements.
        positions: from 0.
        scale: what rotary embeddings for long texts multiply both by.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    exact = (np.cos if function == "cos" else np.sin)(angles.astype(np.float64))
    values: NDArray[np.float32] = exact.astype(np.float32) * np.float32(scale)
    return values


def _frequencies(cache: ir.Value | None, function: str) -> tuple[NDArray[np.float32], float] | None:
    """Return the frequencies ``[head_dim / 2]`` and the factor of the table behind ``cache``."""
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
    product = producer(halves.inputs[0], "Mul") if halves is not None else None
    if product is None:
        return None
    for position, frequency in (product.inputs, product.inputs[::-1]):
        numbers = constant_array(frequency, most=_MOST_FREQUENCIES)
        if numbers is not None and numbers.dtype == np.float32 and _is_position(position):
            return numbers.reshape(-1), scale
    return None


def _is_position(value: ir.Value | None) -> bool:
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _KEEPING:
            return False
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) not in (ir.DataType.FLOAT, ir.DataType.INT64):
            return False
        value = node.inputs[0]
    return value is not None and value.name == "position_ids"
