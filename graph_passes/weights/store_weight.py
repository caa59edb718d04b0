"""Add the operators' matrices and biases to a graph, in their storage formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, Format, FormatSpec
from graph_passes.weights.output_powers import divided, output_powers
from graph_passes.weights.quantization import Rounding
from graph_passes.weights.stored_tensors import repacked_tensors, stored_tensors
from graph_passes.weights.weight_source import Weight

__all__ = ["OutputPowers", "WeightStore"]

Array = NDArray[np.float32]


class OutputPowers(NamedTuple):
    """The powers of two that a down_proj is divided by.

    Attributes:
        value: their initializer.
        read: returns them, ``[d_model]``.
    """

    value: ir.Value
    read: Callable[[], Array]


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
        self._powers: dict[tuple[int, bool, Format], OutputPowers] = {}
        self._biases: dict[tuple[int, int, str], ir.Value] = {}

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
        powers: OutputPowers | None = None,
    ) -> list[ir.Value]:
        """Return the initializers that store ``source`` as ``[d_ff, d_model]``; the existing one if it already fits.

        Args:
            source: weight of a linear layer.
            module: module path; the initializers are named after it.
            weights: the format.
            in_major: ``source`` is ``[d_in, d_out]``.
            is_down: the layer is a down_proj, whose inputs are the neurons.
            importance: of the columns as stored, see `quantize`.
            rounded: reads the integers and scales of 4 bits as stored, if they are chosen already.
            powers: what a down_proj is divided by.
        """
        transposed = is_down != in_major
        spec = FORMAT_SPECS[weights]
        if not transposed and source.kind == "float" and source.dtype == spec.onnx_type:
            return [source.value]
        key = (id(source.value), transposed, weights)
        if key not in self._stored:
            suffix = "" if spec.onnx_type == ir.DataType.FLOAT else f".{weights}"
            name = self._unused(_stored_name(module, is_down=is_down) + suffix)
            shape = source.shape[::-1] if transposed else source.shape
            if rounded is not None:
                tensors = repacked_tensors(rounded, shape, weights, name)
            elif _keeps_integers(source, spec) and not transposed:
                assert source.packed is not None
                tensors = repacked_tensors(source.packed, shape, weights, name)
            else:
                read = _reader(source, transposed=transposed, powers=powers)
                tensors = stored_tensors(read, shape, weights, name, importance, self._rounding)
            self._stored[key] = [self._add(tensor) for tensor in tensors]
        return self._stored[key]

    def output_powers(
        self, source: Weight, module: str, weights: Format, *, in_major: bool, chosen: Array | None = None
    ) -> OutputPowers | None:
        """Return the powers of two to divide a down_proj by before it is rounded; None if it is not rounded.

        Args:
            source: as in `neuron_major`.
            module: likewise.
            weights: likewise.
            in_major: likewise.
            chosen: the powers, ``[d_model]``, if the matrix was rounded with some already.
        """
        spec = FORMAT_SPECS[weights]
        if not spec.group or (_keeps_integers(source, spec) and in_major):
            return None
        key = (id(source.value), in_major, weights)
        if key not in self._powers:

            @cache
            def read() -> Array:
                return output_powers(_reader(source, transposed=not in_major)()) if chosen is None else chosen

            def tensor() -> ir.TensorProtocol:
                return ir.tensor(read(), name=name)

            name = self._unused(f"{_stored_name(module, is_down=True)}.{weights}") + "_power"  # as the scales' name
            shape = ir.Shape(source.shape[1 if in_major else 0 :][:1])
            lazy = ir.LazyTensor(tensor, dtype=ir.DataType.FLOAT, shape=shape, name=name)
            self._powers[key] = OutputPowers(self._add(lazy), read)
        return self._powers[key]

    def bias(self, value: ir.Value | None, width: int, powers: OutputPowers | None = None) -> ir.Value:
        """Return a bias as float32 ``[width]``; for None zeros, since the operators have no optional inputs.

        Args:
            value: the bias.
            width: its length.
            powers: what it is divided by, as its matrix is.
        """
        if value is None:
            name = f"prosparse.zeros.{width}"
            if name not in self._graph.initializers:
                self._add(ir.tensor(np.zeros(width, dtype=np.float32), name=name))
            return self._graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        fits = value.is_initializer() and tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape.numpy()) == (width,)
        if fits and powers is None:
            return value
        key = (id(value), width, "" if powers is None else str(powers.value.name))
        if key not in self._biases:

            def array() -> Array:
                own: Array = tensor.numpy().astype(np.float32).reshape(width)
                return own if powers is None else own / powers.read()

            name = self._unused(f"{value.name}.f32" if powers is None else f"{value.name}.over_power")
            lazy = ir.LazyTensor(
                lambda: ir.tensor(array(), name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape((width,)), name=name
            )
            self._biases[key] = self._add(lazy)
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


def _keeps_integers(source: Weight, spec: FormatSpec) -> bool:
    """Return whether a format can store the source's 4-bit integers as they are."""
    return source.packed is not None and spec.keeps_integers


def _stored_name(module: str, *, is_down: bool) -> str:
    return f"{module}.weight" + ("_t" if is_down else "")


def _reader(source: Weight, *, transposed: bool, powers: OutputPowers | None = None) -> Callable[[], Array]:
    def read() -> Array:
        array: Array = source.read()  # type: ignore[assignment]  # or another float type
        array = array.T if transposed else array
        return array if powers is None else divided(array, powers.read())

    return read
