"""Count FFNs of the ReLU family independently of graph_passes.

Works on names in the serialized model, with local functions inlined by onnx and the bodies of If, Loop and Scan
flattened into the main graph. A ReLU counts if a MatMul reaches it, and it reaches a MatMul, through nodes other than
MatMuls, Softmax and attention.

The pattern also lists FFNs without a ReLU as "not a ReLU" (silu, Relu6); those do not count here.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx.inliner
import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

LINKS = "a body's input or output"
COMPARISONS = {"LessOrEqual", "Less", "Greater", "GreaterOrEqual"}
WALLS = {"Softmax", "LogSoftmax", "Hardmax", "Shape", "Size", "GRU", "LSTM", "RNN", "MoE", "QMoE"}
SMALLEST = {TensorProto.UINT8: 0, TensorProto.UINT16: 0, TensorProto.INT8: -128, TensorProto.INT16: -32768}
# Index of the zero point of operators that round. Nodes between them and a MatMul that keep negative values.
ZERO_POINTS = {"QuantizeLinear": 2, "QLinearMatMul": 7, "QGemm": 8, "QLinearAdd": 7}
SIGNED = {"Add", "Sub", "Mul", "BiasAdd", "Cast", "Concat", "DequantizeLinear", "Dropout", "Flatten", "Identity"}
SIGNED |= {"Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", LINKS}


def count_relu_shapes(source: ir.Graph | GraphProto | ModelProto) -> int:
    """Return the number of ReLUs between two MatMuls."""
    if isinstance(source, ModelProto):
        source = onnx.inliner.inline_local_functions(source).graph
    return _Flat(ir.to_proto(source) if isinstance(source, ir.Graph) else source).count()


class _Flat:
    def __init__(self, graph: GraphProto) -> None:
        self.constants: dict[str, TensorProto] = {}
        self.made: dict[str, list[NodeProto]] = defaultdict(list)
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        self.nodes: list[NodeProto] = []
        self._numbers = itertools.count()
        self._lay(graph, {}, "")
        for node in self.nodes:
            for name in node.output:
                self.made[name].append(node)
            for place, name in enumerate(node.input):
                self.readers[name].append((node, place))

    def _lay(self, graph: GraphProto, outer: dict[str, str], prefix: str) -> dict[str, str]:
        """Add the nodes of ``graph``, what it defines behind ``prefix``; return its names as they are now."""
        defined = [v.name for v in graph.input] + [i.name for i in graph.initializer]
        defined += [name for node in graph.node for name in node.output]
        names = {**outer, **{name: prefix + name for name in defined if name}}
        self.constants |= {names[i.name]: i for i in graph.initializer}
        for node in graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            self.nodes.append(copy)
            if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
                self.constants[copy.output[0]] = node.attribute[0].t
            for body in [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]:
                inner = self._lay(body, names, f"{prefix}{next(self._numbers)}/")
                skipped = node.op_type == "Loop"  # its body gives the condition first
                pairs = zip(copy.input, (inner[v.name] for v in body.input), strict=False)
                outputs = [inner.get(v.name, v.name) for v in body.output][skipped:]
                pairs = [*pairs, *zip(outputs, copy.output, strict=False)]
                self.nodes += [helper.make_node(LINKS, [one], [other]) for one, other in pairs if one and other]
        return names

    def count(self) -> int:
        count = 0
        for node in self.nodes:
            before = self.is_fused(node) or any(self.reaches(z, forward=False) for z in self.before_relu(node))
            count += before and self.reaches(node.output[0], forward=True)
        return count

    def number(self, name: str) -> float | None:
        """Return the value of a constant with one value, possibly expanded."""
        tensor = self.constants.get(name)
        if tensor is None:
            node = self.maker(name)
            if node is not None and node.op_type in ("Expand", "Identity", "Cast", LINKS):
                return self.number(node.input[0])
            if node is not None and node.op_type == "ConstantOfShape":
                return float(numpy_helper.to_array(node.attribute[0].t).reshape(-1)[0]) if node.attribute else 0.0
            return None
        if int(np.prod(tensor.dims)) != 1 or tensor.data_location:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def maker(self, name: str) -> NodeProto | None:
        nodes = self.made.get(name, [])
        return nodes[0] if len(nodes) == 1 else None

    def compared(self, name: str) -> set[str]:
        """Return the values that are compared with a constant to make the mask ``name``."""
        node = self.maker(name)
        if node is not None and node.op_type in ("Not", "Cast", "Identity"):
            return self.compared(node.input[0])
        if node is None or node.op_type not in COMPARISONS:
            return set()
        return {i for i in node.input if self.number(i) is None} if len(node.input) == 2 else set()

    def before_relu(self, node: NodeProto) -> Iterator[str]:
        """Yield the pre-activation where ``node`` is a ReLU."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs = list(node.input)
        if node.op_type in ("Relu", "ThresholdedRelu"):
            yield inputs[0]
        elif node.op_type == "Max" and len(inputs) == 2:
            yield from (z for z, zero in (inputs, inputs[::-1]) if self.number(zero) == 0.0)
        elif node.op_type == "Clip":
            low = self.number(inputs[1]) if len(inputs) > 1 else attributes.get("min")
            high = self.number(inputs[2]) if len(inputs) > 2 and inputs[2] else attributes.get("max", math.inf)
            if low == 0.0 and high is not None and high > 1e30:
                yield inputs[0]
        elif node.op_type == "Where":  # keeps a value where that value, or its size, is large enough
            kept = [name for name in inputs[1:] if self.number(name) != 0.0]
            if len(kept) == 1 and kept[0] in self.originals(self.compared(inputs[0])):
                yield kept[0]
        elif node.op_type == "Mul":
            for z, mask in (inputs, inputs[::-1]):
                if z in self.originals(self.compared(mask)):
                    yield z

    def originals(self, names: set[str]) -> set[str]:
        """Return ``names`` and the arguments of those that are absolute values."""
        makers = [self.maker(name) for name in names]
        return names | {node.input[0] for node in makers if node is not None and node.op_type == "Abs"}

    def is_fused(self, node: NodeProto) -> bool:
        """Return whether a MatMul has a fused ReLU, or a node rounds negative values to zero."""
        activation = next((a.s for a in node.attribute if a.name == "activation"), b"")
        if is_matmul(node) and activation in (b"Relu", b"ThresholdedRelu"):
            return True
        return self.is_clipping(node) and (is_matmul(node) or self.comes_from_matmul(node.input[0]))

    def is_clipping(self, node: NodeProto) -> bool:
        place = ZERO_POINTS.get(node.op_type)
        if place is None or len(node.input) <= place:
            return place == 2
        zero = self.constants.get(node.input[place])
        return zero is not None and bool((numpy_helper.to_array(zero) == SMALLEST.get(zero.data_type)).all())

    def comes_from_matmul(self, name: str) -> bool:
        return any(
            not self.is_clipping(node)
            and (
                is_matmul(node)
                or ((node.op_type in SIGNED or node.op_type in ZERO_POINTS) and self.comes_from_matmul(node.input[0]))
            )
            for node in self.made[name]
        )

    def is_constant(self, name: str) -> bool:
        if name in self.constants or not name:
            return True
        return name in self.made and all(self.is_constant(i) for node in self.made[name] for i in node.input)

    def reaches(self, name: str, forward: bool) -> bool:
        queue, seen = [name], {name}
        while queue:
            name = queue.pop()
            for node, place in self.readers[name] if forward else ((n, 0) for n in self.made.get(name, [])):
                if is_matmul(node):
                    second = 3 if node.op_type in ("QLinearMatMul", "QGemm") else 1
                    on_the_right = place == second and "Conv" not in node.op_type and self.is_constant(node.input[0])
                    if not forward or place == 0 or on_the_right or node.op_type == "Einsum":
                        return True
                elif node.op_type not in WALLS and "Attention" not in node.op_type and "Conv" not in node.op_type:
                    is_rounding = node.op_type == "DynamicQuantizeLinear"  # its scale is no activation
                    if not is_rounding or forward or name == node.output[0]:
                        more = (node.output[:1] if is_rounding else node.output) if forward else node.input
                        queue += [o for o in more if o and o not in seen]
                        seen.update(more)
        return False


def is_matmul(node: NodeProto) -> bool:
    """Return whether ``node`` is a matrix multiplication, including convolutions of kernel size 1."""
    if "Conv" in node.op_type:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kernel = attributes.get("kernel_shape", [0])
        return set(kernel) == {1} and attributes.get("group", 1) == 1
    return any(part in node.op_type for part in ("MatMul", "Gemm", "Einsum"))
