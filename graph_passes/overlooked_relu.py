"""Find every ReLU between two products that the feed-forward pattern did not take, and say why it did not.

The pattern (ffn_pattern.py) starts at a linear layer and asks for known structure. This search starts at each ReLU
and asks for nothing but a product somewhere before it and one somewhere after it, so that a block which the
pattern cannot even see is listed too, with a reason, and never missed in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir

from graph_passes.activation_pattern import match_activation
from graph_passes.linear import Linear
from graph_passes.weight_source import nbits_weight

__all__ = ["overlooked_relus"]

_PRODUCTS = frozenset(
    [
        "MatMul",
        "Gemm",
        "FusedMatMul",
        "FusedGemm",
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QLinearMatMul",
        "QGemm",
        "GemmFloat8",
        "Einsum",
        "TransposeMatMul",
    ]
)
# What a block's values may pass on the way between a product and its ReLU, or the ReLU and the next product.
_BEFORE = frozenset(
    [
        "Add",
        "BiasAdd",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Cast",
        "Identity",
        "Dropout",
        "Split",
        "Slice",
        "Gather",
        "GatherND",
        "Concat",
        "Mul",
        "Div",
        "QuantizeLinear",
        "DequantizeLinear",
        "Expand",
        "BatchNormalization",
        "Sub",
    ]
)
_NORMS = frozenset(
    [
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "ReduceMean",
        "BatchNormalization",
    ]
)
_AFTER = _BEFORE | _NORMS | {"Pow", "Relu", "Where", "Max", "Sqrt", "Reciprocal", "Clip", "Tanh", "Erf", "Gelu"}
_MOST_NODES = 48  # visited on one side of a ReLU


def overlooked_relus(
    graph: ir.Graph | ir.Function, linears: dict[ir.Value, Linear], taken: Collection[int]
) -> Iterator[tuple[ir.Node, str]]:
    """Yield (the ReLU's node, a reason) for each ReLU between two products whose id is not in ``taken``.

    A ReLU is what `match_activation` takes for one, and a fused product with a ReLU of its own.
    """
    for node in graph:
        if id(node) in taken:
            continue
        if _has_relu_inside(node):
            if after := _products(node.outputs[0], forward=True):
                yield node, f"{node.op_type} has its ReLU inside: export without onnxruntime's own fusions ({after[0]})"
            continue
        found = match_activation(node.outputs[0]) if node.outputs else None
        if found is None or found.kind == "relu2" or node.op_type in ("Identity", "Dropout"):
            continue
        before, after = _products(found.z, forward=False), _products(node.outputs[0], forward=True)
        if before and after:
            yield node, _reason(node, before, after, linears)


def _has_relu_inside(node: ir.Node) -> bool:
    attribute = node.attributes.get("activation")
    is_text = attribute is not None and attribute.type == ir.AttributeType.STRING
    return node.op_type in _PRODUCTS and is_text and attribute.as_string() == "Relu"  # type: ignore[union-attr]


def _products(value: ir.Value, *, forward: bool) -> list[ir.Node]:
    """Return the nearest products after ``value`` (as their first input) or before it, nearest first."""
    found: list[ir.Node] = []
    queue, seen = [value], {id(value)}
    while queue and len(seen) < _MOST_NODES:
        value = queue.pop(0)
        nodes = [u.node for u in value.uses() if _is_activation_input(u.node, u.idx)] if forward else [value.producer()]
        for node in nodes:
            if node is None or node in found:
                continue
            if node.op_type in _PRODUCTS:
                found.append(node)
            elif node.op_type in (_AFTER if forward else _BEFORE):
                for other in node.outputs if forward else node.inputs:
                    if other is not None and id(other) not in seen:
                        seen.add(id(other))
                        queue.append(other)
    return found


def _is_activation_input(node: ir.Node, index: int) -> bool:
    """A product's second input is its weight; anything else takes activations at any place."""
    return node.op_type not in _PRODUCTS or index == 0 or node.op_type == "Einsum"


def _reason(node: ir.Node, before: list[ir.Node], after: list[ir.Node], linears: dict[ir.Value, Linear]) -> str:
    for product in (*before, *after):
        if product.op_type == "MatMulNBits" and isinstance(reason := nbits_weight(product), str):
            return reason
        if product.op_type not in ("MatMul", "Gemm", "MatMulNBits"):
            return f"{product.op_type} {_name(product)}: expected MatMul, Gemm or MatMulNBits"
    known = {id(producer) for value in linears if (producer := value.producer()) is not None}
    known |= {id(p) for v in linears for i in v.producer().inputs if i is not None and (p := i.producer())}  # type: ignore[union-attr]
    passed = _between(before, node), _between([node], after)
    if "ReduceMean" in passed[0]:
        return "its threshold is computed for each token from all its neurons (Gaussian top-k)"
    if passed[0] & {"Gather", "GatherND", "Concat"}:
        return "experts: each token chooses its weights at run time"
    for product in (*before, *after):
        if id(product) not in known:
            if product.op_type == "Gemm":
                return f"Gemm {_name(product)}: expected alpha and beta 1, no transA, and constant weights"
            return f"MatMul {_name(product)}: its weight is computed in the graph, expected a constant matrix"
    if passed[1] & (_NORMS | {"Sqrt", "Reciprocal"}):
        return "a norm stands between the activation and down_proj: it needs every neuron"
    if passed[0] & {"Split", "Slice"}:
        return "gate_proj and up_proj are packed in one product"
    if quantised := sorted((passed[0] | passed[1]) & {"QuantizeLinear", "DequantizeLinear"}):
        return f"its activations are quantised ({quantised[0]})"
    others = sorted(passed[0] | passed[1] - {"Mul", "Pow"}) or ["its products"]
    return f"its structure is unknown ({', '.join(others)})"


def _between(starts: list[ir.Node], ends: ir.Node | list[ir.Node]) -> set[str]:
    """Return the kinds of node on the ways from ``starts`` to ``ends``."""
    wanted = ends if isinstance(ends, list) else [ends]
    stop = {id(n) for n in (*starts, *wanted)}

    def reach(first: list[ir.Node], step: Callable[[ir.Node], list[ir.Node]]) -> dict[int, ir.Node]:
        seen: dict[int, ir.Node] = {}
        queue = [n for f in first for n in step(f)]
        while queue and len(seen) < 4 * _MOST_NODES:
            node = queue.pop(0)
            if id(node) not in seen and id(node) not in stop and node.op_type not in _PRODUCTS:
                seen[id(node)] = node
                queue += step(node)
        return seen

    later = reach(starts, lambda n: [u.node for o in n.outputs for u in o.uses()])
    earlier = reach(wanted, lambda n: [p for i in n.inputs if i is not None and (p := i.producer()) is not None])
    return {later[key].op_type for key in later.keys() & earlier.keys()}


def _name(node: ir.Node) -> str:
    return repr(node.name or (node.outputs[0].name if node.outputs else "") or "")
