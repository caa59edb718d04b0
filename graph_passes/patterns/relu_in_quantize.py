"""Recognize a ReLU that a quantizer left out, because rounding to integers does the same."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.patterns.linear import constant_array
from graph_passes.patterns.matmul_search import ProductSearch, is_product

__all__ = ["rounds_negatives_to_zero"]

# What may stand between a product and the QuantizeLinear that its ReLU was folded into: nothing that is never negative.
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
# Operators that round to integers: the place of the zero point of what they give.
_ZERO_POINT = {"QuantizeLinear": 2, "QLinearMatMul": 7, "QGemm": 8, "QLinearAdd": 7}


def rounds_negatives_to_zero(node: ir.Node, search: ProductSearch) -> bool:
    """Tell whether a ReLU is folded into ``node``; one that rounds what a ReLU has made already is none."""
    if not _has_none_below_zero(node):
        return False
    value = node.inputs[0]
    if is_product(node):
        return True
    while value is not None and (maker := value.producer()) is not None and not is_product(maker):
        if maker.op_type not in _KEEPS_SIGNS and not _is_rounding_with_sign(maker):
            return False
        inputs = [other for other in maker.inputs if other is not None and search.products(other, forward=False)[0]]
        value = inputs[0] if inputs else None
    return value is not None and value.producer() is not None and not _has_none_below_zero(value.producer())


def _is_rounding_with_sign(node: ir.Node) -> bool:
    return node.op_type in _ZERO_POINT and not _has_none_below_zero(node)


def _has_none_below_zero(node: ir.Node | None) -> bool:
    place = _ZERO_POINT.get(node.op_type) if node is not None else None
    if node is None or place is None:
        return False
    zero = node.inputs[place] if len(node.inputs) > place else None
    if zero is None:  # it is 0 then, of uint8 if nothing else is said
        dtype = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
        return dtype.name.startswith("UINT")
    numbers = constant_array(zero, most=1 << 20)  # one for each neuron at most
    if numbers is None or zero.dtype is None or not zero.dtype.is_integer():
        return False
    return bool((numbers == zero.dtype.min).all())
