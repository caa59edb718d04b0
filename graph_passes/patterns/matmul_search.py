"""The products around a value: walk from it, either way, through anything that is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

__all__ = ["MOST_VALUES", "ProductSearch", "bodies_of", "is_convolution", "is_product"]

MOST_VALUES = 4096  # visited in one walk; what is not found by then is reported, not taken for absent

# What ends a walk beside products. These hold products of their own, or mix positions (attention), or tell nothing of
# the numbers (Shape). Operators are not asked for their domain: onnxruntime has most of these in one of its own.
_WALLS = frozenset(["Softmax", "LogSoftmax", "Hardmax", "GRU", "LSTM", "RNN", "MoE", "QMoE", "Shape", "Size"])
_SECOND = {"QLinearMatMul": 3, "QGemm": 3}  # place of the second factor; 1 in all others


class ProductSearch:
    """Finds products in a graph and the bodies in it.

    Args:
        graph: where to look; its bodies of If, Loop and Scan belong to it.
    """

    def __init__(self, graph: ir.Graph | ir.Function) -> None:
        self._owners: dict[int, ir.Node] = {}
        self._learn(graph)

    def _learn(self, graph: ir.Graph | ir.Function) -> None:
        for node in graph:
            for body in bodies_of(node):
                self._owners[id(body)] = node
                self._learn(body)

    def owner(self, graph: ir.Graph | ir.Function | None) -> ir.Node | None:
        """Return the If, Loop or Scan whose body ``graph`` is, or None."""
        return self._owners.get(id(graph))

    def products(self, value: ir.Value, *, forward: bool) -> tuple[list[ir.Node], bool]:
        """Return the products that read what ``value`` becomes, or those that it comes from; nearest first.

        Behind a product the walk does not go on. The second result tells whether it ended at MOST_VALUES.
        """
        found: list[ir.Node] = []
        queue, seen = [value], {id(value)}
        for value in queue:  # grows
            for step in self._after(value) if forward else self._before(value):
                if isinstance(step, ir.Node):
                    if step not in found:
                        found.append(step)
                elif id(step) not in seen:
                    seen.add(id(step))
                    queue.append(step)
            if len(seen) > MOST_VALUES:
                return found, True
        return found, False

    def _after(self, value: ir.Value) -> Iterator[ir.Node | ir.Value]:
        for use in value.uses():
            node = use.node
            if is_product(node):
                if _is_factor(node, use.idx):
                    yield node
            elif not _is_wall(node):
                yield from node.outputs[:1] if node.op_type == "DynamicQuantizeLinear" else node.outputs
                for body in bodies_of(node):
                    yield from body.inputs
        if value.is_graph_output() and (owner := self.owner(value.graph)) is not None:
            yield from owner.outputs

    def _before(self, value: ir.Value) -> Iterator[ir.Node | ir.Value]:
        node = value.producer()
        if node is None:
            node = self.owner(value.graph) if value.is_graph_input() else None
            if node is not None:
                yield from (other for other in node.inputs if other is not None)
            return
        if is_product(node):
            yield node
        elif not _is_wall(node) and (node.op_type != "DynamicQuantizeLinear" or value is node.outputs[0]):
            yield from (other for other in node.inputs if other is not None)
            for body in bodies_of(node):
                yield from body.outputs


def is_product(node: ir.Node) -> bool:
    """Tell whether ``node`` multiplies by a matrix: any MatMul, Gemm, Einsum, or convolution of one position.

    By a part of the name, since onnxruntime alone has a dozen and adds some in most releases.
    """
    name = node.op_type
    if is_convolution(node):
        return _is_of_one_position(node)
    return "MatMul" in name or "Gemm" in name or name == "Einsum"


def is_convolution(node: ir.Node) -> bool:
    """Tell whether ``node`` is a convolution of any kind."""
    return "Conv" in node.op_type


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the bodies of an If, Loop or Scan; nothing for other nodes."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _is_wall(node: ir.Node) -> bool:
    return node.op_type in _WALLS or "Attention" in node.op_type or is_convolution(node)


def _is_of_one_position(node: ir.Node) -> bool:
    sizes: Sequence[object] = node.attributes.get_ints("kernel_shape", ())
    if not sizes:
        place = 3 if node.op_type == "QLinearConv" else 1
        weight = node.inputs[place] if len(node.inputs) > place else None
        sizes = weight.shape[2:] if weight is not None and weight.shape is not None else ()
    return bool(sizes) and all(size == 1 for size in sizes) and node.attributes.get_int("group", 1) == 1


def _is_factor(node: ir.Node, place: int) -> bool:
    """Tell whether a product takes activations at ``place``: first, or second where the first is its weight."""
    if place == 0 or node.op_type == "Einsum":
        return True
    return place == _SECOND.get(node.op_type, 1) and not is_convolution(node) and _is_constant(node.inputs[0])


def _is_constant(value: ir.Value | None) -> bool:
    """Tell whether ``value`` is made of initializers and constants alone."""
    queue, seen = [value], {id(value)}
    for value in queue:
        if value is None or value.is_initializer():
            continue
        node = value.producer()
        if node is None or len(seen) > MOST_VALUES:
            return False
        new = [other for other in node.inputs if id(other) not in seen]
        seen.update(id(other) for other in new)
        queue += new
    return True
