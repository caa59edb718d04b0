"""Add the operators' matrices and biases to a graph, in their storage formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, Format
from graph_passes.weights.quantization import Rounding
from graph_passes.weights.stored_tensors import repacked_tensors, stored_tensors
from graph_passes.weights.weight_source import Weight

__all__ = ["WeightStore"]


class WeightStore:
    """The weights that one run of a pass adds to ``graph``. A matrix that two FFNs share is stored once.

    Args:
        graph: the graph.
        rounding: as in `quantize`.
    """

    def __init__(self, graph: ir.Graph, rounding: Rounding | None = None) -> None:
        self._graph = graph
        self._rounding = rounding
        self._stored: dict[tuple[int, bool, Format], list[ir.Value]] = {}
        self._biases: dict[tuple[int, int], ir.Value] = {}

    def neuron_major(
        self,
        source: Weight,
        module: str,
        weights: Format,
        *,
        in_major: bool,
        is_down: bool = False,
        importance: NDArray[np.float32] | None = None,
        rounded: Callable[[], tuple[NDArray[np.uint8], NDArray[np.float16]]] | None = None,
    ) -> list[ir.Value]:
        """Return the initializers that store ``source`` as ``[d_ff, d_model]``; the existing one if it already fits.

        Args:
            source: weight of a linear layer.
            module: module path; the initializers are named after it.
            weights: the format.
            in_major: ``source`` is ``[d_in, d_out]``.
            is_down: the layer is a down_proj, whose inputs are the neurons.
            importance: of the columns as stored, see `quantize`.
            rounded: reads i4's integers and scales as stored, if they are chosen already.
        """
        transposed = is_down != in_major
        spec = FORMAT_SPECS[weights]
        if not transposed and source.kind == "float" and source.dtype == spec.onnx_type:
            return [source.value]
        key = (id(source.value), transposed, weights)
        if key not in self._stored:
            suffix = "" if spec.onnx_type == ir.DataType.FLOAT else f".{weights}"
            name = self._unused(f"{module}.weight" + ("_t" if is_down else "") + suffix)
            shape = source.shape[::-1] if transposed else source.shape
            if rounded is not None:
                tensors = repacked_tensors(rounded, shape, weights, name)
            elif source.packed is not None and spec.group and not transposed:
                tensors = repacked_tensors(source.packed, shape, weights, name)
            else:
                read = _reader(source, transposed=transposed)
                tensors = stored_tensors(read, shape, weights, name, importance, self._rounding)
            self._stored[key] = [self._add(tensor) for tensor in tensors]
        return self._stored[key]

    def bias(self, value: ir.Value | None, width: int) -> ir.Value:
        """Return ``value`` as float32 ``[width]``; for None zeros, since the operators have no optional inputs."""
        if value is None:
            name = f"prosparse.zeros.{width}"
            if name not in self._graph.initializers:
                self._add(ir.tensor(np.zeros(width, dtype=np.float32), name=name))
            return self._graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        if value.is_initializer() and tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape.numpy()) == (width,):
            return value
        key = (id(value), width)
        if key not in self._biases:
            array = tensor.numpy().astype(np.float32).reshape(width)
            self._biases[key] = self._add(ir.tensor(array, name=self._unused(f"{value.name}.f32")))
        return self._biases[key]

    def _unused(self, name: str) -> str:
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
