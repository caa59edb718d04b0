"""Which initializer of a traced graph is which tensor of which layer."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import permutations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from transformers import PreTrainedModel

from graph_passes import CannotStampError, LayerTensor
from prosparse_export.export.lazy_initializers import place_of
from prosparse_models import FatReLU, LayerPlan

__all__ = ["LayerTensors"]


class LayerTensors:
    """The parameters and FATReLU thresholds of a model's layers.

    Args:
        model: the complete model.
        plan: its layers.
    """

    def __init__(self, model: PreTrainedModel, plan: LayerPlan) -> None:
        self._plan = plan
        layers = model.get_submodule(plan.path)
        assert isinstance(layers, nn.ModuleList)
        self._layers = layers
        self._at = {
            parameter.data_ptr(): (layer, name, parameter)
            for layer in plan.traced
            for name, parameter in layers[layer].named_parameters()
            if parameter.numel()
        }
        self._marks = {np.float32(mark).tobytes(): key for key, mark in plan.marks.items()}

    def owns(self, tensor: ir.TensorProtocol | None) -> bool:
        """Return whether ``tensor`` is a layer's parameter, or a view of one."""
        return tensor is not None and tensor.size > 0 and place_of(tensor)[0] in self._at

    def owned(self, graph: ir.Graph) -> dict[ir.Value, LayerTensor]:
        """Return which tensor of which layer the initializers of ``graph`` are, which was traced by the plan.

        Raises:
            CannotStampError: an initializer is computed from a parameter, or a threshold is not in the graph.
        """
        found: dict[ir.Value, LayerTensor] = {}
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if self.owns(tensor):
                assert tensor is not None
                address, strides = place_of(tensor)
                layer, parameter, weight = self._at[address]
                order = _order(weight, tuple(tensor.shape.numpy()), strides)
                if order is None:
                    raise CannotStampError(f"{name} is a part of {parameter} of layer {layer}")
                found[value] = LayerTensor(layer, (parameter, order))
            elif (key := self._mark(tensor)) is not None:
                found[value] = LayerTensor(key[0], (key[1], None))
            if value not in found and name.startswith(f"{self._plan.path}.") and name in self._parameter_names():
                raise CannotStampError(f"{name} is a copy of the parameter")
        missing = {LayerTensor(layer, (path, None)) for layer, path in self._marks.values()} - {*found.values()}
        if missing:
            raise CannotStampError(f"the thresholds of {len(missing)} FFNs are not constants of the graph")
        return found

    def read(self, layer: int, key: Hashable) -> ir.TensorProtocol:
        """Return a layer's tensor; ``key`` as in `owned`."""
        assert isinstance(key, tuple)
        name, order = key
        if order is None:
            module = self._layers[layer].get_submodule(name)
            assert isinstance(module, FatReLU)
            return ir.tensor(np.float32(module.threshold))
        weight = self._layers[layer].get_parameter(name).detach().permute(order)
        return ir.tensor(weight.numpy(), name=f"{self._plan.path}.{layer}.{name}")

    def _mark(self, tensor: ir.TensorProtocol | None) -> tuple[int, str] | None:
        scalar = tensor is not None and tensor.size == 1 and tensor.dtype == ir.DataType.FLOAT
        return self._marks.get(tensor.tobytes()) if tensor is not None and scalar else None

    def _parameter_names(self) -> set[str]:
        return {
            f"{self._plan.path}.{position}.{name}"
            for position, layer in enumerate(self._plan.traced)
            for name, _ in self._layers[layer].named_parameters()
        }


def _order(weight: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the permutation of ``weight``'s axes that gives this shape and these strides, or None."""
    wanted = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size > 1]
    for order in permutations(range(weight.ndim)):
        view = weight.permute(order)
        sizes = zip(view.shape, view.stride(), strict=True)
        if tuple(view.shape) == shape and [(size, stride) for size, stride in sizes if size > 1] == wanted:
            return order
    return None
