"""Look up rows of a stored embedding matrix and convert them to float32, with standard operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from graph_passes.formats import FORMAT_SPECS, Format

__all__ = ["gathered_rows"]


def gathered_rows(new: tape.Tape, stored: Sequence[ir.Value], ids: ir.Value, weights: Format, width: int) -> ir.Value:
    """Record the nodes that gather rows ``ids`` of a matrix; return them as float32 ``[batch, sequence, width]``.

    Args:
        new: records the nodes.
        stored: the weights and, for integer formats, the scales ``[rows, width / 32]``.
        ids: int64 ``[batch, sequence]``.
        weights: the format of ``stored``.
        width: columns; for integer formats a multiple of 32.
    """
    spec = FORMAT_SPECS[weights]
    rows = new.op("Gather", [stored[0], ids], {"axis": 0})
    if not spec.group:
        return new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    scales = new.op("Cast", [new.op("Gather", [stored[1], ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    scales = new.op("Unsqueeze", [scales, _constant(new, np.array([-1]))])
    if spec.bits == 4:
        # Arithmetic in float32 is exact for bytes; OpenVINO 2026.4 computes BitwiseAnd wrongly.
        bytes_ = new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
        sixteen = _constant(new, np.array(16.0, np.float32))
        odd = new.op("Floor", [new.op("Div", [bytes_, sixteen])])
        even = new.op("Sub", [bytes_, new.op("Mul", [odd, sixteen])])
        last = _constant(new, np.array([-1]))
        columns = [new.op("Unsqueeze", [half, last]) for half in (even, odd)]
        rows = new.op("Concat", columns, {"axis": -1})
    if spec.table is not None:
        places = new.op("Cast", [rows], {"to": ir.DataType.INT32})
        values = new.op("Gather", [_constant(new, np.array(spec.table, np.float32)), places])
    elif spec.bits == 4:
        values = new.op("Sub", [rows, _constant(new, np.array(8.0, np.float32))])
    else:
        values = new.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    # In Reshape, 0 copies a dimension: batch, sequence.
    groups = new.op("Reshape", [values, _constant(new, np.array([0, 0, spec.groups(width), spec.group]))])
    return new.op("Reshape", [new.op("Mul", [groups, scales]), _constant(new, np.array([0, 0, width]))])


def _constant(new: tape.Tape, array: np.ndarray) -> ir.Value:
    return new.op("Constant", [], {"value": ir.tensor(array)})
