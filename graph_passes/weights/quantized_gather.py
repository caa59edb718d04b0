"""Rows of a stored matrix as float32, by standard operators: the embedding of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from graph_passes.custom_ops import QUANT_BLOCK, Format, is_quantized

__all__ = ["gathered_rows"]


def gathered_rows(new: tape.Tape, stored: Sequence[ir.Value], ids: ir.Value, weights: Format, width: int) -> ir.Value:
    """Record what reads rows ``ids`` of a matrix, and return them as float32 ``[batch, sequence, width]``.

    Args:
        new: records the nodes.
        stored: the weights ``[rows, width]`` and, for i8 and i4, the scales ``[rows, width / 32]``.
        ids: int64 ``[batch, sequence]``.
        weights: the format of ``stored``.
        width: columns; a multiple of 32 for i8 and i4.
    """
    rows = new.op("Gather", [stored[0], ids], {"axis": 0})
    if not is_quantized(weights):
        return new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    scales = new.op("Cast", [new.op("Gather", [stored[1], ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    scales = new.op("Unsqueeze", [scales, _constant(new, np.array([-1]))])
    if weights == "i4":
        # By arithmetic in float32, exact for bytes: OpenVINO 2026.4 gives other numbers for BitwiseAnd.
        bytes_ = new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
        sixteen = _constant(new, np.array(16.0, np.float32))
        odd = new.op("Floor", [new.op("Div", [bytes_, sixteen])])
        even = new.op("Sub", [bytes_, new.op("Mul", [odd, sixteen])])
        last = _constant(new, np.array([-1]))
        columns = [new.op("Unsqueeze", [half, last]) for half in (even, odd)]
        rows = new.op("Concat", columns, {"axis": -1})
    numbers = rows if weights == "i4" else new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    if weights == "i4":
        numbers = new.op("Sub", [numbers, _constant(new, np.array(8.0, np.float32))])
    # A 0 copies a dimension: batch, sequence.
    blocks = new.op("Reshape", [numbers, _constant(new, np.array([0, 0, width // QUANT_BLOCK, QUANT_BLOCK]))])
    return new.op("Reshape", [new.op("Mul", [blocks, scales]), _constant(new, np.array([0, 0, width]))])


def _constant(new: tape.Tape, array: np.ndarray) -> ir.Value:
    return new.op("Constant", [], {"value": ir.tensor(array)})
