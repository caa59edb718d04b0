"""Recognize a linear layer's constant weight matrix, and read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.weights.narrow_tensor import narrow_reader
from graph_passes.weights.quantization import unpack

__all__ = ["Weight", "is_parameter", "nbits_weight", "weight_behind"]

Kind = Literal["float", "qdq", "nbits"]
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_COMPUTED = "is computed at run time; expected an initializer"


@dataclass(frozen=True)
class Weight:
    """A constant matrix.

    Attributes:
        value: the initializer that holds the weights or, quantized, the integers.
        shape: rows and columns as stored.
        matmul_type: type of a MatMul with the matrix.
        kind: float, qdq (DequantizeLinear of integers) or nbits (com.microsoft::MatMulNBits).
        read: returns the matrix, ``shape``, in any float dtype. Nothing is read before the call.
        packed: nbits only: returns the 4-bit values as i4 stores them, uint8 ``[rows, cols / 2]``, and their scales
            ``[rows, cols / 32]``.
    """

    value: ir.Value
    shape: tuple[int, int]
    matmul_type: ir.DataType
    kind: Kind
    read: Callable[[], NDArray[np.generic]]
    packed: Callable[[], tuple[NDArray[np.uint8], NDArray[np.floating]]] | None = None

    @property
    def dtype(self) -> ir.DataType:
        """Element type of ``value``."""
        assert self.value.const_value is not None
        return self.value.const_value.dtype


def is_parameter(value: ir.Value | None) -> bool:
    """Return whether ``value`` is an initializer with known contents that callers cannot override."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def weight_behind(value: ir.Value | None) -> tuple[Weight, bool] | str:
    """Return the constant matrix behind ``value`` and whether it is stored transposed, or why there is none.

    1. an initializer;
    2. case 1 behind any sequence of ``Transpose`` and ``Identity``;
    3. ``Cast`` to float32 of a float16 or bfloat16 initializer, which is exact;
    4. ``DequantizeLinear`` of an integer initializer with constant scales.
    """
    transposed, matmul_type = False, None
    while value is not None and not is_parameter(value):
        if value.is_initializer() and value.is_graph_input():
            return "is also a graph input, which callers may override; expected an initializer only"
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
            matmul_type = ir.DataType.FLOAT
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
        return f"has rank {len(tensor.shape)}; expected 2"
    shape = tuple(tensor.shape.numpy())
    return Weight(value, (shape[0], shape[1]), matmul_type or tensor.dtype, "float", narrow_reader(tensor)), transposed


def _of_type(dtype: ir.DataType) -> str:
    return f"has type {dtype.name}; expected FLOAT, FLOAT16 or BFLOAT16"


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
        return f"has rank {len(tensor.shape)}; expected 2"
    zeros = zero.const_value if zero is not None else None
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    rows, cols = tuple(tensor.shape.numpy())
    for what, parameter in (("scales", scales), ("zero points", zeros)):
        if parameter is not None and not _fits(tuple(parameter.shape.numpy()), (rows, cols), axis, block):
            attributes = f"axis={axis}" + (f", block_size={block}" if block else "")
            got = f"{what} of shape {list(parameter.shape.numpy())} ({attributes})"
            return f"has {got}, which do not match its shape {[rows, cols]}"

    def each(parameter: NDArray[np.generic]) -> NDArray[np.float32]:
        values = parameter.astype(np.float32)
        if block:
            wide: NDArray[np.float32] = np.repeat(values, block, axis=axis)
            return wide[:rows, :cols]
        if values.size == 1:
            return values.reshape(1, 1)
        return values.reshape([-1, 1] if axis in (0, -2) else [1, -1])

    def read() -> NDArray[np.float32]:
        values: NDArray[np.float32] = tensor.numpy().astype(np.float32)
        if zeros is not None:
            values = values - each(zeros.numpy())
        return values * each(scales.numpy())

    return Weight(integers, (rows, cols), scales.dtype, "qdq", read)


def _fits(shape: tuple[int, ...], matrix: tuple[int, int], axis: int, block: int) -> bool:
    """Return whether a DequantizeLinear parameter of ``shape`` fits a matrix: per tensor, per axis or blockwise."""
    if not -2 <= axis <= 1 or block < 0:
        return False
    if not block:
        return shape in ((), (1,), (matrix[axis],))
    blocks = list(matrix)
    blocks[axis] = -(-matrix[axis] // block)
    return list(shape) == blocks


def nbits_weight(node: ir.Node) -> Weight | str:
    """Return the matrix ``[N, K]`` of a ``com.microsoft::MatMulNBits`` node, or why it cannot be read.

    It is stored as uint8 ``[N, blocks, block_size / 2]``, the even column in the low half, with one scale per row
    and block and a zero point of 8.

    Source:
        onnxruntime, contrib operators: com.microsoft.MatMulNBits.
    """
    attributes = node.attributes
    rows, cols = attributes.get_int("N", 0), attributes.get_int("K", 0)
    bits, block = attributes.get_int("bits", 4), attributes.get_int("block_size", 0)
    inputs = [*node.inputs, *[None] * 6][:6]
    integers, scales, zeros, order = inputs[1], inputs[2], inputs[3], inputs[4]
    if bits != 4 or block != 32:
        return f"MatMulNBits has bits={bits}, block_size={block}; expected bits=4, block_size=32"
    if order is not None:
        return "MatMulNBits uses g_idx, which is not supported"
    if cols % block or not rows > 0 < cols:
        return f"MatMulNBits has N={rows}, K={cols}; expected positive numbers, K a multiple of {block}"
    if not (is_parameter(integers) and is_parameter(scales)):
        return "MatMulNBits weights and scales must be initializers"
    assert integers is not None
    assert scales is not None
    if zeros is not None and not _all_eights(zeros):
        return "MatMulNBits has zero points other than 8; expected symmetric weights"
    tensor, scale_tensor = integers.const_value, scales.const_value
    assert tensor is not None
    assert scale_tensor is not None
    for what, stored, size in (("bytes", tensor, rows * cols // 2), ("scales", scale_tensor, rows * cols // block)):
        if stored.size != size or (what == "bytes" and stored.dtype != ir.DataType.UINT8):
            got = f"{stored.size} {what} ({stored.dtype.name})"
            return f"MatMulNBits has {got}; expected {size} for N={rows}, K={cols}"

    def packed_and_scales() -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
        packed = tensor.numpy().reshape(rows, cols // 2)
        return packed, scale_tensor.numpy().reshape(rows, cols // block)

    def read() -> NDArray[np.float32]:
        packed, scale = packed_and_scales()
        values: NDArray[np.float32] = unpack(packed, "i4").astype(np.float32)
        return values * np.repeat(scale.astype(np.float32), block, axis=1)

    return Weight(integers, (rows, cols), scale_tensor.dtype, "nbits", read, packed_and_scales)


def _all_eights(zeros: ir.Value) -> bool:
    """Return whether all zero points are 8, which is the default."""
    if not is_parameter(zeros) or zeros.const_value is None:
        return False
    array = zeros.const_value.numpy()
    return bool((array == (0x88 if array.dtype == np.uint8 else 8)).all())
