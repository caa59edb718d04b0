"""Complete a graph of a few decoder layers by copies of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, MutableSequence, Sequence

import onnx_ir as ir

from graph_passes.patterns.layer_copies import (
    CACHE_NAME,
    SCOPES,
    CannotStampError,
    LayerGraph,
    LayerTensor,
    carried_value,
    read_layers,
)

__all__ = ["CannotStampError", "LayerTensor", "StampLayersPass"]


class StampLayersPass(ir.passes.InPlacePass):
    """Insert the layers that were not traced, as copies of those that were.

    Before anything is changed, the two traced layers of each kind are compared node by node. They may differ in their
    own tensors, their KV cache, and one value that each takes from the layer before it.

    Args:
        path: module path of the list of layers, as in the graph's metadata.
        traced: for each layer of the graph, its index in the complete model; 0 and the last one among them.
        first: for each layer of the complete model, the first one of its kind, which is traced.
        template: likewise, the last one of its kind.
        owned: which tensor of which layer an initializer is.
        read: returns a layer's tensor; called with the layer and the key of a `LayerTensor`.
    """

    def __init__(
        self,
        path: str,
        traced: Sequence[int],
        first: Sequence[int],
        template: Sequence[int],
        owned: Mapping[ir.Value, LayerTensor],
        read: Callable[[int, Hashable], ir.TensorProtocol],
    ) -> None:
        super().__init__()
        self._path, self._traced, self._first, self._template = path, tuple(traced), tuple(first), tuple(template)
        self._owned, self._read = owned, read

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the missing layers.

        Raises:
            CannotStampError: the graph's layers are not copies; nothing was changed.
        """
        graph = model.graph
        layers = dict(zip(self._traced, read_layers(graph, self._path, self._traced, self._owned), strict=True))
        missing = [layer for layer in range(len(self._template)) if layer not in layers]
        carried = {}
        for template in {self._template[layer] for layer in missing}:
            first = next(self._first[layer] for layer in missing if self._template[layer] == template)
            carried[template] = carried_value(layers[first], layers[template], self._owned)
        results = {layer: layers[layer].result for layer in (*carried, *(m - 1 for m in missing if m - 1 in layers))}
        for position, layer in reversed(list(enumerate(self._traced))):  # from the last: an index only grows
            self._rename(graph, layers[layer], position)
        copier = _Copier(graph, self._path, self._owned, self._read)
        current: ir.Value | None = None
        for layer in range(len(self._template)):
            if layer in layers:
                if current is not None:
                    _replace_input(layers[layer], results[copier.after], current)
                copier.after, current = layer, None
            else:
                source = layers[self._template[layer]]
                before = current if current is not None else results[copier.after]
                current = copier.copy(source, layer, carried[source.layer], before, results[source.layer])
        graph.sort()
        return ir.passes.PassResult(model, modified=bool(missing))

    def _rename(self, graph: ir.Graph, layer: LayerGraph, position: int) -> None:
        """Give the names of a traced layer, and its tensors, their index in the complete model."""
        for value in (*graph.inputs, *graph.outputs):
            if (match := CACHE_NAME.match(value.name or "")) and int(match[2]) == position:
                value.name = _cache_name(match, layer.layer)
        for node in layer.nodes:
            _set_scope(node, self._path, layer.layer)
        prefix = f"{self._path}.{position}."
        for value, tensor in self._owned.items():
            if tensor.layer == layer.layer:
                if (value.name or "").startswith(prefix):
                    value.name = f"{self._path}.{layer.layer}.{(value.name or '').removeprefix(prefix)}"
                value.const_value = self._read(layer.layer, tensor.key)


class _Copier:
    """Copies a layer's nodes, tensors and KV cache."""

    def __init__(
        self,
        graph: ir.Graph,
        path: str,
        owned: Mapping[ir.Value, LayerTensor],
        read: Callable[[int, Hashable], ir.TensorProtocol],
    ) -> None:
        self._graph, self._path, self._owned, self._read = graph, path, owned, read
        self.after = 0  # the traced layer after which copies are inserted

    def copy(self, source: LayerGraph, layer: int, carried: ir.Value, before: ir.Value, result: ir.Value) -> ir.Value:
        """Append a copy of ``source`` as ``layer`` and return its result.

        Args:
            source: the layer to copy.
            layer: index of the copy.
            carried: what ``source`` takes from the layer before it.
            before: what the copy takes in its place.
            result: the result of ``source``.
        """
        values: dict[ir.Value, ir.Value] = {carried: before}
        self._add_cache_inputs(source, layer, values)
        for node in source.nodes:
            inputs = [None if value is None else self._input(value, layer, values) for value in node.inputs]
            copied = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                overload=node.overload,
                num_outputs=len(node.outputs),
                version=node.version,
                name=f"{node.name}.{layer}" if node.name else None,
                metadata_props=dict(node.metadata_props),
            )
            _set_scope(copied, self._path, layer)
            for old, new in zip(node.outputs, copied.outputs, strict=True):
                new.name, new.type = f"{old.name}.{layer}", old.type
                new.shape = old.shape.copy() if old.shape is not None else None
                values[old] = new
            self._graph.append(copied)
        self._add_cache_outputs(source, layer, values)
        return values[result]

    def _input(self, value: ir.Value, layer: int, values: dict[ir.Value, ir.Value]) -> ir.Value:
        if value in values:
            return values[value]
        if (tensor := self._owned.get(value)) is None:
            return value
        values[value] = self._initializer(value, tensor, layer)
        return values[value]

    def _initializer(self, value: ir.Value, tensor: LayerTensor, layer: int) -> ir.Value:
        name, prefix = value.name or "", f"{self._path}.{tensor.layer}."
        new = f"{self._path}.{layer}.{name.removeprefix(prefix)}" if name.startswith(prefix) else f"{name}.{layer}"
        copied = ir.Value(name=new, type=value.type, shape=value.shape, const_value=self._read(layer, tensor.key))
        self._graph.register_initializer(copied)
        return copied

    def _add_cache_inputs(self, source: LayerGraph, layer: int, values: dict[ir.Value, ir.Value]) -> None:
        for value in list(self._graph.inputs):
            match = CACHE_NAME.match(value.name or "")
            if match and int(match[2]) == source.layer:
                values[value] = ir.Value(name=_cache_name(match, layer), type=value.type, shape=value.shape)
                _insert(self._graph.inputs, values[value])

    def _add_cache_outputs(self, source: LayerGraph, layer: int, values: Mapping[ir.Value, ir.Value]) -> None:
        for output in list(self._graph.outputs):
            match = CACHE_NAME.match(output.name or "")
            if match and int(match[2]) == source.layer:
                values[output].name = _cache_name(match, layer)
                _insert(self._graph.outputs, values[output])


def _insert(values: MutableSequence[ir.Value], new: ir.Value) -> None:
    """Insert a KV cache input or output in order of layers, keys before values."""
    at = len(values)
    while at and _cache_order(values[at - 1]) > _cache_order(new):
        at -= 1
    values.insert(at, new)


def _cache_order(value: ir.Value) -> tuple[int, str]:
    match = CACHE_NAME.match(value.name or "")
    return (int(match[2]), match[3]) if match else (-1, "")


def _cache_name(match: re.Match[str], layer: int) -> str:
    return f"{match[1]}.{layer}.{match[3]}"


def _set_scope(node: ir.Node, path: str, layer: int) -> None:
    if (scopes := node.metadata_props.get(SCOPES)) is not None:
        node.metadata_props[SCOPES] = re.sub(rf"(?<={re.escape(path)}\.)\d+", str(layer), scopes)


def _replace_input(layer: LayerGraph, old: ir.Value, new: ir.Value) -> None:
    for node in layer.nodes:
        for position, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(position, new)
