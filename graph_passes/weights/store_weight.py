"""Put the operators' matrices and biases into a graph, in their storage formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.custom_ops import Format
from graph_passes.weights.weight_format import store
from graph_passes.weights.weight_source import Weight

__all__ = ["WeightStore"]


class WeightStore:
    """The weights that one run of a pass adds to ``graph``; a matrix that two blocks share is stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._stored: dict[tuple[int, bool, Format], list[ir.Value]] = {}
        self._biases: dict[tuple[int, int], ir.Value] = {}

    def neuron_major(
        self, source: Weight, module: str, weights: Format, *, in_major: bool, is_down: bool = False
    ) -> list[ir.Value]:
        """Return the initializers that store ``source`` as ``[d_ff, d_model]``; the existing one if it already fits.

        Args:
            source: weight of a linear layer.
            module: module path; the initializers are named after it.
            weights: the format.
            in_major: ``source`` is ``[d_in, d_out]``.
            is_down: the layer is a down_proj, whose inputs are the neurons.
        """
        transposed = is_down != in_major
        as_it_is = {"f32": ir.DataType.FLOAT, "f16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
        if not transposed and source.kind == "float" and source.dtype == as_it_is.get(weights):
            return [source.value]
        key = (id(source.value), transposed, weights)
        if key not in self._stored:
            name = self._free(
                f"{module}.weight" + ("_t" if is_down else "") + ("" if weights == "f32" else f".{weights}")
            )
            shape = source.shape[::-1] if transposed else source.shape
            tensors = _same_digits(source, weights, name) if not transposed else None
            if tensors is None:
                tensors = store(_reader(source, transposed=transposed), shape, weights, name)
            self._stored[key] = [self._add(tensor) for tensor in tensors]
        return self._stored[key]

    def bias(self, value: ir.Value | None, width: int) -> ir.Value:
        """Return ``value`` as float32 ``[width]``; zeros for None, as the operators have no optional inputs."""
        if value is None:
            name = f"prosparse.zeros.{width}"
            if name not in self._graph.initializers:
                self._add(ir.tensor(np.zeros(width, dtype=np.float32), name=name))
            return self._graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape.numpy()) == (width,):
            return value
        key = (id(value), width)
        if key not in self._biases:
            array = tensor.numpy().astype(np.float32).reshape(width)
            self._biases[key] = self._add(ir.tensor(array, name=self._free(f"{value.name}.f32")))
        return self._biases[key]

    def _free(self, name: str) -> str:
        wanted, number = name, 1
        while name in self._graph.initializers:
            name, number = f"{wanted}.{number}", number + 1
        return name

    def _add(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


def _reader(source: Weight, *, transposed: bool) -> Callable[[], NDArray[np.float32]]:
    def read() -> NDArray[np.float32]:
        array: NDArray[np.float32] = source.read()  # type: ignore[assignment]  # or another float type
        return array.T if transposed else array

    return read


def _same_digits(source: Weight, weights: Format, name: str) -> list[ir.LazyTensor] | None:
    """Return 4-bit integers as i4 or i8 with their own scales, rounded to float16; None where it is not that."""
    if source.digits is None or weights not in ("i4", "i8"):
        return None
    digits = source.digits
    rows, cols = source.shape

    def integers() -> ir.TensorProtocol:
        packed = digits()[0]
        if weights == "i4":
            return ir.tensor(np.ascontiguousarray(packed), name=name)
        numbers: NDArray[np.int8] = np.stack([packed & 15, packed >> 4], -1).reshape(rows, cols).astype(np.int8) - 8
        return ir.tensor(numbers, name=name)

    def scales() -> ir.TensorProtocol:
        return ir.tensor(digits()[1].astype(np.float16), name=f"{name}_scale")

    stored = (ir.DataType.UINT8, cols // 2) if weights == "i4" else (ir.DataType.INT8, cols)
    blocks = ir.Shape((rows, cols // 32))
    return [
        ir.LazyTensor(integers, dtype=stored[0], shape=ir.Shape((rows, stored[1])), name=name),
        ir.LazyTensor(scales, dtype=ir.DataType.FLOAT16, shape=blocks, name=f"{name}_scale"),
    ]
