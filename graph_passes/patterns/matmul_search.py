"""Find the MatMuls before and after a value, walking through all other nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

__all__ = ["MAX_VALUES", "MatMulSearch", "bodies_of", "is_convolution", "is_matmul"]

MAX_VALUES = 4096  # visited per walk; a walk that ends here is reported as incomplete

# Other operators that end a walk: they contain MatMuls, mix positions (attention), or do not depend on the values
# (Shape). Domains are ignored, because onnxruntime has its own versions of most of them.
_STOPS = frozenset(["Softmax", "LogSoftmax", "Hardmax", "GRU", "LSTM", "RNN", "MoE", "QMoE", "Shape", "Size"])
_SECOND = {"QLinearMatMul": 3, "QGemm": 3}  # index of the second factor; 1 for all others


class MatMulSearch:
    """Finds MatMuls in a graph and in the bodies of its If, Loop and Scan nodes.

    Args:
        graph: the main graph or a function.
    """

    def __init__(self, graph: ir.Graph | ir.Function) -> None:
        self._owners: dict[int, ir.Node] = {}
        self._find_owners(graph)

    def _find_owners(self, graph: ir.Graph | ir.Function) -> None:
        for node in graph:
            for body in bodies_of(node):
                self._owners[id(body)] = node
                self._find_owners(body)

    def owner(self, graph: ir.Graph | ir.Function | None) -> ir.Node | None:
        """Return the If, Loop or Scan whose body ``graph`` is, or None."""
        return self._owners.get(id(graph))

    def matmuls(self, value: ir.Value, *, forward: bool) -> tuple[list[ir.Node], bool]:
        """Return the MatMuls that ``value`` flows into, or that it comes from, nearest first.

        The walk does not go past a MatMul. The second result tells whether it gave up after MAX_VALUES.
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
            if len(seen) > MAX_VALUES:
                return found, True
        return found, False

    def _after(self, value: ir.Value) -> Iterator[ir.Node | ir.Value]:
        for use in value.uses():
            node = use.node
            if is_matmul(node):
                if _takes_activations(node, use.idx):
                    yield node
            elif not _is_stop(node):
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
        if is_matmul(node):
            yield node
        elif not _is_stop(node) and (node.op_type != "DynamicQuantizeLinear" or value is node.outputs[0]):
            yield from (other for other in node.inputs if other is not None)
            for body in bodies_of(node):
                yield from body.outputs


def is_matmul(node: ir.Node) -> bool:
    """Return whether ``node`` is a matrix multiplication: MatMul, Gemm, Einsum, or a convolution of kernel size 1.

    Matches part of the name: onnxruntime has a dozen variants and adds some in most releases.
    """
    name = node.op_type
    if is_convolution(node):
        return _has_kernel_size_1(node)
    return "MatMul" in name or "Gemm" in name or name == "Einsum"


def is_convolution(node: ir.Node) -> bool:
    """Return whether ``node`` is a convolution of any kind."""
    return "Conv" in node.op_type


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the subgraphs of an If, Loop or Scan; other nodes have none."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _is_stop(node: ir.Node) -> bool:
    return node.op_type in _STOPS or "Attention" in node.op_type or is_convolution(node)


def _has_kernel_size_1(node: ir.Node) -> bool:
    sizes: Sequence[object] = node.attributes.get_ints("kernel_shape", ())
    if not sizes:
        index = 3 if node.op_type == "QLinearConv" else 1
        weight = node.inputs[index] if len(node.inputs) > index else None
        sizes = weight.shape[2:] if weight is not None and weight.shape is not None else ()
    return bool(sizes) and all(size == 1 for size in sizes) and node.attributes.get_int("group", 1) == 1


def _takes_activations(node: ir.Node, index: int) -> bool:
    """Return whether a MatMul reads activations at input ``index``: 0, or 1 if input 0 is a weight."""
    if index == 0 or node.op_type == "Einsum":
        return True
    return index == _SECOND.get(node.op_type, 1) and not is_convolution(node) and _is_constant(node.inputs[0])


def _is_constant(value: ir.Value | None) -> bool:
    """Return whether ``value`` depends on initializers and constants only."""
    queue, seen = [value], {id(value)}
    for value in queue:
        if value is None or value.is_initializer():
            continue
        node = value.producer()
        if node is None or len(seen) > MAX_VALUES:
            return False
        new = [other for other in node.inputs if id(other) not in seen]
        seen.update(id(other) for other in new)
        queue += new
    return True
