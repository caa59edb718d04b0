"""Which layers of a model are copies of one another, and the model with a few of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prosparse_models.activation import FatReLU

__all__ = ["LayerPlan", "few_layers", "plan_layers"]

_LAYER_INDEX = ("layer_idx", "layer_index")
_FIRST_THRESHOLD = 0.9471  # of the traced layers' marks; any value that no model computes with
_MARK_STEP = 2.0**-12


@dataclass(frozen=True)
class LayerPlan:
    """Which layers to trace, and of which the others are copies.

    The first and the last layer of each kind are traced: the two show what differs between copies.

    Attributes:
        path: module path of the layers' ModuleList.
        count: number of layers.
        traced: the layers to trace, ascending.
        template: for each layer, the last layer of its kind.
        first: for each layer, the first layer of its kind.
        indices: attributes that hold the layer's own index, by module path in the layer.
        marks: FATReLU thresholds while tracing, by (layer, module path); they identify the constant in the graph. Empty
            if the layers of each kind have equal thresholds.
    """

    path: str
    count: int
    traced: tuple[int, ...]
    template: tuple[int, ...]
    first: tuple[int, ...]
    indices: tuple[tuple[str, str], ...] = ()
    marks: Mapping[tuple[int, str], float] = field(default_factory=dict)


def plan_layers(model: PreTrainedModel) -> LayerPlan | str:
    """Return the plan for ``model``, or the reason why all of its layers must be traced.

    Two layers are of one kind if their modules have equal classes, attributes, hooks, and parameter shapes, and the
    config's lists with one entry per layer are equal for them. An attribute that equals the layer's index in every
    layer and a FATReLU threshold may differ.
    """
    found = _layers_of(model)
    if isinstance(found, str):
        return found
    path, layers = found
    config = model.config.get_text_config()
    reason = _shared(model, path, layers) or _refers(config, layers)
    if reason:
        return reason
    indices = _own_indices(layers)
    lists = _layer_lists(config, len(layers))
    kinds = [
        (_signature(layer, indices), *(repr(values[index]) for values in lists.values()))
        for index, layer in enumerate(layers)
    ]
    first = tuple(kinds.index(kind) for kind in kinds)
    template = tuple(len(kinds) - 1 - kinds[::-1].index(kind) for kind in kinds)
    traced = tuple(sorted({*first, *template}))
    if len(traced) == len(layers):
        return f"{len(layers)} layers of {len(set(kinds))} kinds: none is a copy of two others"
    return LayerPlan(path, len(layers), traced, template, first, indices, _marks(layers, first, traced))


@contextmanager
def few_layers(model: PreTrainedModel, plan: LayerPlan) -> Iterator[None]:
    """Reduce ``model`` to the plan's traced layers, with indices from 0; put everything back at the end."""
    parent_path, _, name = plan.path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layers = model.get_submodule(plan.path)
    assert isinstance(layers, nn.ModuleList)
    config = model.config.get_text_config()
    lists = _layer_lists(config, plan.count)
    values = vars(config)
    marked = {key: _fatrelu(layers[key[0]], key[1]) for key in plan.marks}
    thresholds = {key: module.threshold for key, module in marked.items()}
    try:
        parent._modules[name] = nn.ModuleList(layers[index] for index in plan.traced)
        for key, entries in lists.items():
            values[key] = type(entries)(entries[index] for index in plan.traced)
        for position, index in enumerate(plan.traced):
            _set_indices(layers[index], plan.indices, position)
        for where, mark in plan.marks.items():
            marked[where].threshold = mark
        yield
    finally:
        parent._modules[name] = layers
        values.update(lists)
        for index in plan.traced:
            _set_indices(layers[index], plan.indices, index)
        for where, threshold in thresholds.items():
            marked[where].threshold = threshold


def _layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | str:
    wanted = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {path: m for path, m in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    found = [(path, module) for path, module in outer.items() if len(module) == wanted]
    if len(found) != 1:
        return f"expected one list of {wanted} layers in {type(model).__name__}, found {len(found)}"
    return found[0]


def _shared(model: nn.Module, path: str, layers: nn.ModuleList) -> str:
    """Return a reason if a layer shares a tensor with another layer or with the rest of the model."""
    owner: dict[int, str] = {}
    for name, tensor in _tensors(model):
        if not tensor.numel():
            continue
        where = name[: name.find(".", len(path) + 1)] if name.startswith(f"{path}.") else ""
        other = owner.setdefault(tensor.untyped_storage().data_ptr(), where)
        if other != where:
            return f"{name} is shared with {other or 'a module outside the layers'}"
    return ""


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _refers(config: Any, layers: nn.ModuleList) -> str:
    """Return a reason if a layer refers to another one by its index."""
    if getattr(config, "num_kv_shared_layers", 0):
        return "layers share keys and values"
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            for name, value in vars(module).items():
                if type(value) is int and any(part in name for part in _LAYER_INDEX) and value != index:
                    return f"layer {index}: {path}.{name} refers to layer {value}"
    return ""


def _own_indices(layers: nn.ModuleList) -> tuple[tuple[str, str], ...]:
    """Return the (module path, attribute) pairs whose value is the layer's index in every layer."""
    found: Counter[tuple[str, str]] = Counter()
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            found.update((path, name) for name, value in vars(module).items() if type(value) is int and value == index)
    return tuple(key for key, count in found.items() if count == len(layers))


def _set_indices(layer: nn.Module, indices: tuple[tuple[str, str], ...], value: int) -> None:
    for path, name in indices:
        setattr(layer.get_submodule(path), name, value)


def _layer_lists(config: Any, count: int) -> dict[str, Any]:
    """Return the config's lists with one entry per layer."""
    return {
        name: value for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == count
    }


def _signature(layer: nn.Module, indices: tuple[tuple[str, str], ...]) -> Hashable:
    """Return what must be equal for two layers to compute the same function of their weights."""
    parts: list[Hashable] = []
    for path, module in layer.named_modules():
        shapes = [(name, p if p is None else (p.shape, p.dtype)) for name, p in module._parameters.items()]
        buffers = [(name, _comparable(buffer)) for name, buffer in module._buffers.items()]  # equal in all copies
        own = {name for where, name in indices if where == path}
        if isinstance(module, FatReLU) and module.threshold > 0.0:
            own.add("threshold")
        values = [
            (name, _comparable(value))
            for name, value in sorted(vars(module).items())
            if name not in own and name not in _STATE
        ]
        hooks = [_comparable(hook) for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
        parts.append((path, type(module), tuple(shapes), tuple(buffers), tuple(values), tuple(hooks)))
    return tuple(parts)


_STATE = frozenset(vars(nn.Module()))  # of every module: its dictionaries and flags


def _comparable(value: object) -> Hashable:
    """Return a key that is equal for equal values; for objects without equality, their identity."""
    if isinstance(value, int | float | str | bytes | bool | torch.dtype | torch.device | type(None)):
        return type(value), value
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(map(_comparable, value))
    if isinstance(value, dict):
        return dict, tuple((_comparable(key), _comparable(item)) for key, item in value.items())
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if hasattr(value, "func") and hasattr(value, "args"):  # functools.partial
        return _comparable(value.func), _comparable(value.args), _comparable(getattr(value, "keywords", {}))
    if hasattr(value, "__self__") and hasattr(value, "__func__"):  # a method, often the module's own
        return "method", id(value.__func__)
    return id(value)


def _fatrelu(layer: nn.Module, path: str) -> FatReLU:
    module = layer.get_submodule(path)
    assert isinstance(module, FatReLU)
    return module


def _marks(layers: nn.ModuleList, first: tuple[int, ...], traced: tuple[int, ...]) -> dict[tuple[int, str], float]:
    """Return a mark for each FATReLU of the traced layers, if the copies of one of them differ in their threshold."""
    thresholds = [
        {path: m.threshold for path, m in layer.named_modules() if isinstance(m, FatReLU) and m.threshold > 0.0}
        for layer in layers
    ]
    if all(values == thresholds[first[index]] for index, values in enumerate(thresholds)):
        return {}
    keys = [(index, path) for index in traced for path in thresholds[index]]
    return {key: _FIRST_THRESHOLD + number * _MARK_STEP for number, key in enumerate(keys)}
