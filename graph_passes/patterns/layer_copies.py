"""The decoder layers of a traced graph, and whether one is a copy of another."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["CACHE_NAME", "SCOPES", "CannotStampError", "LayerGraph", "LayerTensor", "carried_value", "read_layers"]

CACHE_NAME = re.compile(r"^((?:(?:input|output)\.)?(?:past_key_values|cache)\.layers)\.(\d+)\.(keys|values)$")
"""Names of KV cache inputs and outputs as transformers' OnnxExporter writes them: ``cache`` since transformers 5.24,
without a prefix where the model calls input and output differently."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the paths of the modules that it is part of, outermost first."""


class CannotStampError(Exception):
    """The layers of a graph are not copies of one another; the message is the reason."""


@dataclass(frozen=True)
class LayerTensor:
    """A tensor that each layer has its own of.

    Attributes:
        layer: index of the layer in the complete model.
        key: identifies the tensor within its layer.
    """

    layer: int
    key: Hashable


@dataclass
class LayerGraph:
    """The part of a graph that computes one layer.

    Attributes:
        layer: index of the layer in the complete model.
        nodes: its nodes, in the graph's order.
        taken: values that it takes from the layer before.
        results: values that the next layer takes; of the last layer, those that the rest of the graph takes.
    """

    layer: int
    nodes: list[ir.Node] = field(default_factory=list)
    taken: list[ir.Value] = field(default_factory=list)
    results: list[ir.Value] = field(default_factory=list)

    @property
    def result(self) -> ir.Value:
        """The one value that the next layer takes.

        Raises:
            CannotStampError: there are several, or none.
        """
        if len(self.results) != 1:
            raise CannotStampError(f"layer {self.layer} has {len(self.results)} results, expected one")
        return self.results[0]


def read_layers(
    graph: ir.Graph, path: str, traced: Sequence[int], owned: Mapping[ir.Value, LayerTensor]
) -> list[LayerGraph]:
    """Return the layers of ``graph``.

    Args:
        graph: as traced.
        path: module path of the list of layers.
        traced: for each layer of the graph, its index in the complete model.
        owned: the initializers that belong to a layer.

    Raises:
        CannotStampError: a layer reads something of another one than the layer before it, or a part outside the layers
            reads something of a layer other than the last.
    """
    scope = re.compile(rf"'{re.escape(path)}\.(\d+)'")
    layers = [LayerGraph(layer) for layer in traced]
    place = _places(graph, scope)
    for node, position in place.items():
        if any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values()):
            raise CannotStampError(f"{node.op_type} {node.name} contains a graph")
        if position is not None:
            if position >= len(layers):
                raise CannotStampError(f"{node.name} belongs to layer {position} of {len(layers)}")
            layers[position].nodes.append(node)
        for value in node.inputs:
            if value is not None:
                _check_owner(node, position, value, owned, traced)
                producer = value.producer()
                _note(layers, place[producer] if producer is not None else None, position, value)
    for value in graph.outputs:
        producer = value.producer()
        source = place[producer] if producer is not None else None
        match = CACHE_NAME.match(value.name or "")
        if match is None:
            _note(layers, source, None, value)
        elif int(match[2]) != source:
            raise CannotStampError(f"{value.name} is not computed by its layer")
    if not all(layer.nodes for layer in layers):
        raise CannotStampError(f"expected {len(layers)} layers under {path}, found fewer")
    return layers


_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _places(graph: ir.Graph, scope: re.Pattern[str]) -> dict[ir.Node, int | None]:
    """Return the layer that each node is part of: by its module path, or because it lies between nodes of a layer."""
    place: dict[ir.Node, int | None] = {}
    after: dict[ir.Node, int] = {}  # nodes without a layer's path that read something of a layer
    for node in graph:
        match = scope.search(node.metadata_props.get(SCOPES, ""))
        place[node] = int(match[1]) if match else None
        if match is None:
            producers = [value.producer() for value in node.inputs if value is not None]
            sources = [after.get(p, place[p]) for p in producers if p is not None]
            found = [source for source in sources if source is not None]
            if found:
                after[node] = max(found)
    for node in reversed(list(after)):
        if any(place[user] == after[node] for value in node.outputs for user, _ in value.uses()):
            place[node] = after[node]
    return place


def _check_owner(
    node: ir.Node,
    position: int | None,
    value: ir.Value,
    owned: Mapping[ir.Value, LayerTensor],
    traced: Sequence[int],
) -> None:
    """Raise if ``node`` reads a tensor or the KV cache of a layer that it is not part of."""
    if value in owned:
        if position is None or traced[position] != owned[value].layer:
            raise CannotStampError(f"{value.name}, of layer {owned[value].layer}, is read by another part: {node.name}")
        return
    match = CACHE_NAME.match(value.name or "")
    if match is None or not value.is_graph_input() or int(match[2]) == position:
        return
    # The rest of the graph may take the past length from the first or the last layer, which are always traced.
    if position is not None or int(match[2]) not in (0, len(traced) - 1):
        raise CannotStampError(f"{node.name} reads the KV cache of another layer: {value.name}")


def _note(layers: list[LayerGraph], source: int | None, reader: int | None, value: ir.Value) -> None:
    """Note that ``value``, computed at ``source``, is read at ``reader``; None is outside the layers."""
    if source is None or source == reader:
        return
    last = len(layers) - 1
    if (last if reader is None else reader - 1) != source:
        where = "outside the layers" if reader is None else f"by layer {layers[reader].layer}"
        raise CannotStampError(f"{value.name}, computed by layer {layers[source].layer}, is read {where}")
    if not any(value is other for other in layers[source].results):
        layers[source].results.append(value)
    if reader is not None and not any(value is other for other in layers[reader].taken):
        layers[reader].taken.append(value)


def carried_value(first: LayerGraph, last: LayerGraph, owned: Mapping[ir.Value, LayerTensor]) -> ir.Value:
    """Return the value that ``last`` takes from the layer before it, after comparing it with ``first``.

    Raises:
        CannotStampError: ``last`` is not a copy of ``first``.
    """
    what = f"layers {first.layer} and {last.layer} differ"
    if len(first.nodes) != len(last.nodes):
        raise CannotStampError(f"{what}: {len(first.nodes)} and {len(last.nodes)} nodes")
    numbers = [{node: number for number, node in enumerate(layer.nodes)} for layer in (first, last)]
    pairs: dict[tuple[int, int], ir.Value] = {}
    for one, other in zip(first.nodes, last.nodes, strict=True):
        where = f"{what}: {one.op_type} {one.name} and {other.op_type} {other.name}"
        if _operation(one) != _operation(other) or not _same_attributes(one, other):
            raise CannotStampError(where)
        for position, (ours, theirs) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            inner = [_inner(value, own) for value, own in zip((ours, theirs), numbers, strict=True)]
            if inner[0] != inner[1]:
                raise CannotStampError(f"{where}, input {position}")
            if ours is theirs or inner[0] is not None:
                continue
            if ours is None or theirs is None:
                raise CannotStampError(f"{where}, input {position}")
            if ours in owned or theirs in owned:
                if ours not in owned or theirs not in owned or owned[ours].key != owned[theirs].key:
                    raise CannotStampError(f"{where}, input {position}")
            elif not (_same_constant(ours, theirs) or _same_role(ours, theirs)):
                pairs[id(ours), id(theirs)] = theirs
    if len(pairs) != 1 or [id(value) for value in last.taken] != [theirs for _, theirs in pairs]:
        raise CannotStampError(f"{what}: expected one value from the layer before, found {len(pairs)}")
    if first.taken and [id(value) for value in first.taken] != [ours for ours, _ in pairs]:
        raise CannotStampError(f"{what} in what they take from the layer before")
    return next(iter(pairs.values()))


def _operation(node: ir.Node) -> tuple[object, ...]:
    return node.domain, node.op_type, node.overload, node.version, len(node.inputs), len(node.outputs)


def _same_attributes(one: ir.Node, other: ir.Node) -> bool:
    if set(one.attributes) != set(other.attributes):
        return False
    return all(_same_attribute(attribute, other.attributes[name]) for name, attribute in one.attributes.items())


def _same_attribute(one: ir.Attr, other: ir.Attr) -> bool:
    if one.type == other.type == ir.AttributeType.TENSOR:
        return _bits(one.as_tensor()) == _bits(other.as_tensor())
    return bool(one == other)


def _inner(value: ir.Value | None, numbers: Mapping[ir.Node, int]) -> tuple[int, int | None] | None:
    """Return which output of which node of the layer ``value`` is, or None."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer not in numbers:
        return None
    return numbers[producer], value.index()


def _same_constant(one: ir.Value, other: ir.Value) -> bool:
    tensors = one.const_value, other.const_value
    return tensors[0] is not None and tensors[1] is not None and _bits(tensors[0]) == _bits(tensors[1])


def _same_role(one: ir.Value, other: ir.Value) -> bool:
    """Return whether both are the keys, or the values, in the KV cache."""
    roles = [CACHE_NAME.match(value.name or "") for value in (one, other)]
    return all(role is not None for role in roles) and len({role and role[3] for role in roles}) == 1


def _bits(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
