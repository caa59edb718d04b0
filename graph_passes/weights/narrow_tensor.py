"""Float32 tensors whose values a narrower float type holds, as a checkpoint's file does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["NarrowTensor", "narrow_reader"]


class NarrowTensor(ir.LazyTensor):
    """A float32 tensor that is read when it is needed, in the type that it comes in where any will do.

    Args:
        narrow: returns the values, any float dtype.
        shape: their shape.
        name: name of the tensor.
    """

    def __init__(self, narrow: Callable[[], NDArray[np.generic]], shape: Sequence[int], name: str) -> None:
        def read() -> ir.TensorProtocol:
            return ir.tensor(narrow().astype(np.float32, copy=False), name=name)

        super().__init__(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
        self.narrow = narrow


def narrow_reader(tensor: ir.TensorProtocol) -> Callable[[], NDArray[np.generic]]:
    """Return a function that reads ``tensor``: its values, exact, in any float dtype."""
    return tensor.narrow if isinstance(tensor, NarrowTensor) else tensor.numpy
