"""Where a linear layer's matrix comes from: an initializer, and how its numbers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Weight", "is_parameter", "nbits_weight", "weight_behind"]

Kind = Literal["float", "qdq", "nbits"]
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_COMPUTED = "is computed in the graph: expected a constant matrix"


@dataclass(frozen=True)
class Weight:
    """A constant matrix.

    Attributes:
        value: the initializer that holds the numbers, or, quantized, the integers.
        shape: rows and columns as stored.
        product: type of a product with the matrix.
        kind: float; qdq (DequantizeLinear of integers); nbits (com.microsoft::MatMulNBits).
        read: returns the matrix, ``shape``; float32 unless ``kind`` is float. Nothing is read before it is called.
        digits: nbits only, and only where the operators' i4 storage has the same integers: returns them as uint8
            ``[rows, cols / 2]`` and their scales ``[rows, cols / 32]``.
    """

    value: ir.Value
    shape: tuple[int, int]
    product: ir.DataType
    kind: Kind
    read: Callable[[], NDArray[np.generic]]
    digits: Callable[[], tuple[NDArray[np.uint8], NDArray[np.floating]]] | None = None

    @property
    def dtype(self) -> ir.DataType:
        """Float type of the numbers, or the type of the integers."""
        assert self.value.const_value is not None
        return self.value.const_value.dtype


def is_parameter(value: ir.Value | None) -> bool:
    """Tell whether ``value`` is an initializer with known contents that no caller can override."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def weight_behind(value: ir.Value | None) -> tuple[Weight, bool] | str:
    """Return the matrix behind ``value`` and whether it is stored transposed, or why there is none.

    1. an initializer;
    2. ``Transpose``, ``Identity`` of case 1, any number of times, in any order;
    3. ``Cast`` to float32 of a float16 or bfloat16 initializer, which keeps its numbers;
    4. ``DequantizeLinear`` of an integer initializer with constant scales.
    """
    transposed, product = False, None
    while value is not None and not is_parameter(value):
        if value.is_initializer() and value.is_graph_input():
            return "may be replaced by the caller, since it is an input too: expected an initializer alone"
        node = value.producer()
        if node is None or node.domain != "" or not node.inputs:
            return _COMPUTED
        if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]:
            transposed = not transposed
        elif node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            source = node.inputs[0]
            if source is None or not is_parameter(source) or source.dtype is None:
                return _COMPUTED
            if source.dtype not in _FLOATS:
                return _of_type(source.dtype)
            product = ir.DataType.FLOAT
        elif node.op_type == "DequantizeLinear":
            weight = _dequantized(node)
            return weight if isinstance(weight, str) else (weight, transposed)
        elif node.op_type != "Identity":
            return _COMPUTED
        value = node.inputs[0]
    tensor = value.const_value if value is not None else None
    if tensor is None or value is None:
        return _COMPUTED
    if tensor.dtype not in _FLOATS:
        return _of_type(tensor.dtype)
    if len(tensor.shape) != 2:
        return f"has {len(tensor.shape)} dimensions: expected a matrix"
    shape = tuple(tensor.shape.numpy())
    return Weight(value, (shape[0], shape[1]), product or tensor.dtype, "float", tensor.numpy), transposed


def _of_type(dtype: ir.DataType) -> str:
    return f"is {dtype.name}: expected FLOAT, FLOAT16 or BFLOAT16"


def _dequantized(node: ir.Node) -> Weight | str:
    integers, scale, *rest = [*node.inputs, None][:3]
    zero = rest[0] if rest else None
    if not (is_parameter(integers) and is_parameter(scale)) or (zero is not None and not is_parameter(zero)):
        return _COMPUTED
    assert integers is not None
    assert scale is not None
    tensor, scales = integers.const_value, scale.const_value
    assert tensor is not None
    assert scales is not None
    if len(tensor.shape) != 2:
        return f"has {len(tensor.shape)} dimensions: expected a matrix"
    zeros = zero.const_value if zero is not None else None
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    rows, cols = tuple(tensor.shape.numpy())
    for what, parameter in (("scales", scales), ("zero points", zeros)):
        if parameter is not None and not _fits(tuple(parameter.shape.numpy()), (rows, cols), axis, block):
            blocks = f" in blocks of {block}" if block else ""
            got = f"{what} of shape {list(parameter.shape.numpy())} along axis {axis}{blocks}"
            return f"has {got}: expected some that fit its shape {[rows, cols]}"

    def each(parameter: NDArray[np.generic]) -> NDArray[np.float32]:
        numbers = parameter.astype(np.float32)
        if block:
            wide: NDArray[np.float32] = np.repeat(numbers, block, axis=axis)
            return wide[:rows, :cols]
        if numbers.size == 1:
            return numbers.reshape(1, 1)
        return numbers.reshape([-1, 1] if axis in (0, -2) else [1, -1])

    def read() -> NDArray[np.float32]:
        numbers: NDArray[np.float32] = tensor.numpy().astype(np.float32)
        if zeros is not None:
            numbers = numbers - each(zeros.numpy())
        return numbers * each(scales.numpy())

    return Weight(integers, (rows, cols), scales.dtype, "qdq", read)


def _fits(shape: tuple[int, ...], matrix: tuple[int, int], axis: int, block: int) -> bool:
    """Tell whether a DequantizeLinear's parameter of ``shape`` fits a matrix: one number, one per line, or blocks."""
    if not -2 <= axis <= 1 or block < 0:
        return False
    if not block:
        return shape in ((), (1,), (matrix[axis],))
    blocks = list(matrix)
    blocks[axis] = -(-matrix[axis] // block)
    return list(shape) == blocks


def nbits_weight(node: ir.Node) -> Weight | str:
    """Return the matrix ``[N, K]`` of a ``com.microsoft::MatMulNBits`` node, or why it cannot be read.

    Its storage is uint8 ``[N, blocks, block_size / 2]``, the even column in the low half, with one scale per row
    and block and 8 as zero (onnxruntime's contrib operator documentation).
    """
    attributes = node.attributes
    rows, cols = attributes.get_int("N", 0), attributes.get_int("K", 0)
    bits, block = attributes.get_int("bits", 4), attributes.get_int("block_size", 0)
    inputs = [*node.inputs, *[None] * 6][:6]
    integers, scales, zeros, order = inputs[1], inputs[2], inputs[3], inputs[4]
    if bits != 4 or block != 32:
        return f"MatMulNBits has {bits} bits in blocks of {block}: expected 4 in blocks of 32"
    if order is not None:
        return "MatMulNBits has columns in another order (g_idx)"
    if cols % block or not rows > 0 < cols:
        return f"MatMulNBits has N = {rows}, K = {cols}: expected K a multiple of {block}"
    if not (is_parameter(integers) and is_parameter(scales)):
        return "MatMulNBits has weights that are no initializers"
    assert integers is not None
    assert scales is not None
    if zeros is not None and not _all_eights(zeros):
        return "MatMulNBits has zero points: expected symmetric weights"
    tensor, scale_tensor = integers.const_value, scales.const_value
    assert tensor is not None
    assert scale_tensor is not None
    for what, stored, size in (("bytes", tensor, rows * cols // 2), ("scales", scale_tensor, rows * cols // block)):
        if stored.size != size or (what == "bytes" and stored.dtype != ir.DataType.UINT8):
            got = f"{stored.size} {what} ({stored.dtype.name})"
            return f"MatMulNBits has {got}: expected {size} for N = {rows}, K = {cols}"

    def digits() -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
        packed = tensor.numpy().reshape(rows, cols // 2)
        return packed, scale_tensor.numpy().reshape(rows, cols // block)

    def read() -> NDArray[np.float32]:
        packed, scale = digits()
        numbers = np.stack([packed & 15, packed >> 4], -1).reshape(rows, cols).astype(np.float32) - 8
        return numbers * np.repeat(scale.astype(np.float32), block, axis=1)

    return Weight(integers, (rows, cols), scale_tensor.dtype, "nbits", read, digits)


def _all_eights(zeros: ir.Value) -> bool:
    """Tell whether the zero points are 8, what they are where there are none."""
    if not is_parameter(zeros) or zeros.const_value is None:
        return False
    array = zeros.const_value.numpy()
    return bool((array == (0x88 if array.dtype == np.uint8 else 8)).all())
