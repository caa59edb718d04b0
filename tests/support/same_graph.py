"""Compare two graphs node by node, up to names."""

from __future__ import annotations

import ast

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"


def first_difference(one: ir.Model, other: ir.Model) -> str:
    """Where two graphs first differ, from each output backwards; "" if they are equal up to the names of values.

    Nodes are equal if operator, attributes, inputs, and module path are; initializers if their contents are.
    """
    for kind in ("inputs", "outputs"):
        names = [[value.name for value in getattr(model.graph, kind)] for model in (one, other)]
        if names[0] != names[1]:
            return f"{kind}: {names[0]} and {names[1]}"
    if one.graph.num_nodes() != other.graph.num_nodes():
        return f"{one.graph.num_nodes()} and {other.graph.num_nodes()} nodes"
    same: dict[ir.Value | None, ir.Value | None] = {}
    back: dict[ir.Value | None, ir.Value | None] = {}
    todo: list[tuple[ir.Value | None, ir.Value | None]] = list(zip(one.graph.outputs, other.graph.outputs, strict=True))
    while todo:
        ours, theirs = todo.pop()
        if same.get(ours, theirs) is not theirs or back.get(theirs, ours) is not ours:
            return f"{_name(ours)} is two values in the other graph, or the other way round: {_name(theirs)}"
        if ours in same:
            continue
        same[ours], back[theirs] = theirs, ours
        producers = [value.producer() if value is not None else None for value in (ours, theirs)]
        if producers[0] is None or producers[1] is None:
            if producers[0] is not producers[1] or _leaf(ours) != _leaf(theirs):
                return f"{_name(ours)} and {_name(theirs)}"
            continue
        if _node(producers[0]) != _node(producers[1]):
            return f"{_node(producers[0])} and {_node(producers[1])}"
        todo += zip(producers[0].inputs, producers[1].inputs, strict=True)
    return ""


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else value.name


def _leaf(value: ir.Value | None) -> tuple[object, ...]:
    if value is None:
        return ()
    tensor = value.const_value
    if tensor is None:
        return (value.name, value.dtype, None if value.shape is None else value.shape.rank())
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()


def _node(node: ir.Node) -> tuple[object, ...]:
    attributes = {name: _attribute(attribute) for name, attribute in sorted(node.attributes.items())}
    return node.domain, node.op_type, attributes, len(node.inputs), len(node.outputs), _module(node)


def _attribute(attribute: ir.Attr) -> object:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
    return str(attribute.value)


def _module(node: ir.Node) -> list[str]:
    """The module paths of ``node``, without the name of the traced operation."""
    return list(ast.literal_eval(node.metadata_props.get(SCOPES, "['']")))[:-1]
