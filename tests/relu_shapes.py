"""Count feed-forward blocks of the ReLU family without our matcher: another walk, in other words.

Reachability over the whole graph by names, not by objects, on the serialised model: a ReLU counts if some product
with a parameter reaches it through anything but products and Softmax, and it reaches such a product likewise.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx import GraphProto, NodeProto, numpy_helper

PRODUCTS = {"MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm"}
WALLS = PRODUCTS | {"Softmax", "Conv", "GroupQueryAttention", "MultiHeadAttention", "Loop", "If", "Scan", "GRU", "LSTM"}
# Ways that do not lead from a ReLU to its down_proj: the token's own residual goes around them.
SIDES = {"Shape", "Size", "Equal", "LessOrEqual", "Less", "Greater", "GreaterOrEqual"}


def count_relu_shapes(graph: ir.Graph | GraphProto) -> int:
    """Return how many ReLUs lie between two products with parameters; bodies of If and Loop are counted too."""
    proto = ir.to_proto(graph) if isinstance(graph, ir.Graph) else graph
    constants = {i.name: i for i in proto.initializer}
    values = {
        n.output[0]: n.attribute[0].t for n in proto.node if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    made = {name: node for node in proto.node for name in node.output}
    readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in proto.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))

    def number(name: str) -> float | None:
        tensor = constants.get(name) or values.get(name)
        if tensor is None and name in made and made[name].op_type in ("Expand", "Identity", "Cast"):
            return number(made[name].input[0])
        if tensor is None or int(np.prod(tensor.dims)) != 1 or tensor.data_location:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def is_relu(node: NodeProto) -> bool:
        if node.op_type == "Relu":
            return True
        if node.op_type == "Max":
            return len(node.input) == 2 and 0.0 in (number(node.input[0]), number(node.input[1]))
        if node.op_type == "Clip" and len(node.input) > 1:
            return number(node.input[1]) == 0.0 and (
                len(node.input) < 3 or not number(node.input[2]) or number(node.input[2]) > 1e30
            )  # type: ignore[operator]
        if node.op_type == "Where":  # keeps a value where that value is large enough
            test = made.get(node.input[0])
            kept = [name for name in node.input[1:] if number(name) != 0.0]
            return test is not None and len(kept) == 1 and test.op_type in SIDES and kept[0] in test.input
        return False

    def reaches_product(name: str, forward: bool) -> bool:
        queue, seen = [name], {name}
        while queue:
            name = queue.pop()
            if forward:
                for node, place in readers[name]:
                    if node.op_type in PRODUCTS and place == 0:
                        return True
                    if node.op_type not in WALLS | SIDES and not (node.op_type == "Add" and is_residual(node, name)):
                        queue += [o for o in node.output if o not in seen]
                        seen.update(node.output)
            elif name in made:
                node = made[name]
                if node.op_type in PRODUCTS:
                    return True
                if node.op_type not in WALLS | SIDES:
                    queue += [i for i in node.input if i not in seen]
                    seen.update(node.input)
        return False

    def is_residual(node: NodeProto, name: str) -> bool:
        return all(other == name or (other not in constants and other not in values) for other in node.input)

    count = sum(
        is_relu(node)
        and reaches_product(next(i for i in node.input if number(i) is None or node.op_type == "Relu"), False)
        and reaches_product(node.output[0], True)
        for node in proto.node
    )
    bodies = [a.g for node in proto.node for a in node.attribute if a.HasField("g")]
    return count + sum(count_relu_shapes(body) for body in bodies)
