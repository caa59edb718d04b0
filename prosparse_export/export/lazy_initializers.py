"""Replace placeholders in a traced graph by weights that are read from their files as they are written."""

from __future__ import annotations

from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from graph_passes import NarrowTensor
from prosparse_models import FileWeight, FileWeights

__all__ = ["float_array", "place_of", "place_weights"]


def place_weights(graph: ir.Graph, weights: FileWeights) -> str:
    """Replace placeholder initializers of ``graph`` by lazy float32 tensors.

    Args:
        graph: traced from a model that holds placeholders.
        weights: the checkpoint's files.

    Returns:
        "" on success; else the name of an initializer that was computed from a placeholder, which needs a trace with
        the weights in memory.
    """
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        place = place_of(tensor)
        weight = weights.weight(place[0])
        if weight is not None:
            order = _order(place[1], tuple(weight.stored.shape), tuple(tensor.shape.numpy()))
            if order is None:
                return name
            value.const_value = _lazy(name, weight, order)
        elif np.isnan(tensor.numpy()).any():
            return name
    return ""


def place_of(tensor: ir.TensorProtocol) -> tuple[int, tuple[int, ...]]:
    """Return the address of a tensor and its strides in elements."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        return raw.data_ptr(), tuple(raw.stride())
    array = tensor.numpy()
    address = array.__array_interface__["data"][0]
    return cast("int", address), tuple(stride // array.itemsize for stride in array.strides)


def _order(strides: tuple[int, ...], stored: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the permutation of axes that gives a placeholder of shape ``stored`` these strides, or None."""
    order = tuple(stride - 1 for stride in strides)
    whole = sorted(order) == list(range(len(stored))) and tuple(stored[axis] for axis in order) == shape
    return order if whole else None


def _lazy(name: str, weight: FileWeight, order: tuple[int, ...]) -> NarrowTensor:
    shape = tuple(weight.stored.shape[axis] for axis in order)
    return NarrowTensor(lambda: float_array(weight.narrow()).transpose(order), shape, name)


def float_array(values: torch.Tensor) -> NDArray[Any]:
    """Return ``values``, any float dtype, as an array with the same memory; bfloat16 as ml_dtypes' type."""
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: NDArray[Any] = values.numpy()
    return array
