"""Recognize a ReLU that a quantizer folded into rounding to unsigned integers."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.patterns.linear import constant_array
from graph_passes.patterns.matmul_search import MatMulSearch, is_matmul

__all__ = ["rounds_negatives_to_zero"]

# Nodes allowed between a MatMul and the QuantizeLinear that its ReLU was folded into. All can produce negative values.
_KEEPS_SIGNS = frozenset(
    [
        "Add",
        "BiasAdd",
        "Cast",
        "Concat",
        "DequantizeLinear",
        "Dropout",
        "Flatten",
        "Identity",
        "Mul",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    ]
)
# Operators that round to integers, with the index of their output's zero point.
_ZERO_POINT = {"QuantizeLinear": 2, "QLinearMatMul": 7, "QGemm": 8, "QLinearAdd": 7}


def rounds_negatives_to_zero(node: ir.Node, search: MatMulSearch) -> bool:
    """Return whether a ReLU is folded into ``node``. A node fed by an explicit ReLU does not count."""
    if not _clips_negatives(node):
        return False
    value = node.inputs[0]
    if is_matmul(node):
        return True
    while value is not None and (maker := value.producer()) is not None and not is_matmul(maker):
        if maker.op_type not in _KEEPS_SIGNS and not _keeps_sign_when_rounding(maker):
            return False
        inputs = [other for other in maker.inputs if other is not None and search.matmuls(other, forward=False)[0]]
        value = inputs[0] if inputs else None
    return value is not None and value.producer() is not None and not _clips_negatives(value.producer())


def _keeps_sign_when_rounding(node: ir.Node) -> bool:
    return node.op_type in _ZERO_POINT and not _clips_negatives(node)


def _clips_negatives(node: ir.Node | None) -> bool:
    index = _ZERO_POINT.get(node.op_type) if node is not None else None
    if node is None or index is None:
        return False
    zero = node.inputs[index] if len(node.inputs) > index else None
    if zero is None:  # defaults to 0, and the type to uint8
        dtype = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
        return dtype.name.startswith("UINT")
    zeros = constant_array(zero, most=1 << 20)  # up to one per neuron
    if zeros is None or zero.dtype is None or not zero.dtype.is_integer():
        return False
    return bool((zeros == zero.dtype.min).all())
