"""Find every ReLU between two products that the feed-forward pattern did not take, and say why it did not.

The pattern (ffn_pattern.py) starts at a linear layer and asks for known structure. This search starts at each ReLU
and asks for nothing but a product somewhere before it and one somewhere after it, with no other product, Softmax or
attention between, so that a block which the pattern cannot even see is listed too, with a reason, and never missed in
silence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir

from graph_passes.patterns.activation_pattern import match_activation
from graph_passes.patterns.linear import Linear
from graph_passes.patterns.matmul_search import MOST_VALUES, ProductSearch, is_convolution, is_product
from graph_passes.patterns.relu_in_quantize import rounds_negatives_to_zero
from graph_passes.weights.weight_source import nbits_weight, weight_behind

__all__ = ["overlooked_relus"]

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


def overlooked_relus(
    graph: ir.Graph | ir.Function, linears: dict[ir.Value, Linear], taken: Collection[int], search: ProductSearch
) -> Iterator[tuple[ir.Node, str]]:
    """Yield (the ReLU's node, a reason) for each ReLU between two products whose id is not in ``taken``.

    A ReLU is:
    1. what `match_activation` takes for one;
    2. a fused product with a ReLU of its own;
    3. rounding to integers whose smallest stands for 0, right after a product: exporters of quantized files leave the
       ReLU before it out, since the rounding does the same.
    """
    for node in graph:
        if id(node) in taken or not node.outputs:
            continue
        inside = _has_relu_inside(node)
        folded = not inside and rounds_negatives_to_zero(node, search)
        before, is_cut = [node], False
        if not (inside or folded):
            found = match_activation(node.outputs[0])
            if found is None or found.kind == "relu2" or node.op_type in ("Identity", "Dropout"):
                continue
            before, is_cut = search.products(found.z, forward=False)
        after: list[ir.Node] = []
        if before:
            after, is_cut = search.products(node.outputs[0], forward=True)
        if before and after:
            if inside:
                reason = f"{_what(node)} has its ReLU inside: export without onnxruntime's own fusions"
            elif folded:
                reason = (
                    f"its activations are quantized: its ReLU is folded into {_what(node)}, where no number is negative"
                )
            else:
                reason = _reason(node, before, after, linears, search)
            yield node, reason
        elif is_cut:
            yield node, f"no product found within {MOST_VALUES} values of its ReLU: expected one before and one after"


def _has_relu_inside(node: ir.Node) -> bool:
    attribute = node.attributes.get("activation")
    is_text = attribute is not None and attribute.type == ir.AttributeType.STRING
    return is_product(node) and is_text and attribute.as_string() in ("Relu", "ThresholdedRelu")  # type: ignore[union-attr]


def _reason(
    node: ir.Node,
    before: list[ir.Node],
    after: list[ir.Node],
    linears: dict[ir.Value, Linear],
    search: ProductSearch,
) -> str:
    sources = [p for v in after[0].inputs[:2] if v is not None for p in search.products(v, forward=False)[0]]
    others = [product for product in sources if product not in before]  # up_proj, where the ReLU is of a gate
    products = [before[0], after[0], *before[1:], *others, *after[1:]]
    owner = search.owner(node.graph)
    for product in products:
        if reason := _of_product(product):
            return reason
        if owner is not None and product.graph is not node.graph:
            return f"it is in the body of {owner.op_type} {_name(owner)}, and {_what(product)} is not"
        inner = search.owner(product.graph)
        if inner is not None and product.graph is not node.graph:
            return f"{_what(product)} is in the body of {inner.op_type} {_name(inner)}"
    known = {id(linear.product) for linear in linears.values()}
    passed = _between(before, node), _between([node], after)
    if "ReduceMean" in passed[0]:
        return "its threshold is computed for each token from all its neurons (Gaussian top-k)"
    if passed[0] & {"Gather", "GatherND", "Concat"}:
        return "experts: each token chooses its weights at run time"
    for product in products:
        if id(product) not in known:
            return _of_weight(product)
    if passed[1] & (_NORMS | {"Sqrt", "Reciprocal"}):
        return "a norm stands between the activation and down_proj: it needs every neuron"
    if passed[0] & {"Split", "Slice"}:
        return "gate_proj and up_proj are packed in one product"
    if quantized := sorted((passed[0] | passed[1]) & {"QuantizeLinear", "DequantizeLinear"}):
        return f"its activations are quantized ({quantized[0]})"
    unknown = sorted(passed[0] | passed[1] - {"Mul", "Pow"}) or ["its products"]
    return f"its structure is unknown ({', '.join(unknown)})"


def _of_product(product: ir.Node) -> str:
    """Return what is wrong with the kind of product, or ""."""
    if product.op_type == "MatMulNBits":
        weight = nbits_weight(product)
        return weight if isinstance(weight, str) else ""
    if "Integer" in product.op_type or product.op_type in ("QLinearMatMul", "QGemm", "DynamicQuantizeMatMul"):
        return f"its activations are quantized ({_what(product)}): expected products of floats"
    if is_convolution(product):
        return "its products are convolutions: expected MatMul, Gemm or MatMulNBits"
    if product.op_type not in ("MatMul", "Gemm"):
        return f"{_what(product)}: expected MatMul, Gemm or MatMulNBits"
    return ""


def _of_weight(product: ir.Node) -> str:
    """Return why a MatMul or Gemm is no linear layer."""
    if product.op_type == "MatMulNBits":
        return f"{_what(product)} has a bias that is no constant of its width"
    attributes = product.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        return f"{_what(product)} has another alpha or beta: expected alpha and beta 1"
    if attributes.get_int("transA", 0):
        return f"{_what(product)} has transA: expected it without"
    left, right = product.inputs[:2]
    weight = weight_behind(right)
    if isinstance(weight, str) and not isinstance(weight_behind(left), str):
        return f"the weight of {_what(product)} is its first input: expected it as the second"
    if isinstance(weight, str):
        return f"the weight of {_what(product)} {weight}"
    return f"{_what(product)} has a bias that is no constant of its width"


def _between(starts: list[ir.Node], ends: ir.Node | list[ir.Node]) -> set[str]:
    """Return the kinds of node on the ways from ``starts`` to ``ends``."""
    wanted = ends if isinstance(ends, list) else [ends]
    stop = {id(n) for n in (*starts, *wanted)}

    def reach(first: list[ir.Node], step: Callable[[ir.Node], list[ir.Node]]) -> dict[int, ir.Node]:
        seen: dict[int, ir.Node] = {}
        queue = [n for f in first for n in step(f)]
        for node in queue:  # grows
            if id(node) not in seen and id(node) not in stop and not is_product(node) and len(seen) < MOST_VALUES:
                seen[id(node)] = node
                queue += step(node)
        return seen

    later = reach(starts, lambda n: [u.node for o in n.outputs for u in o.uses()])
    earlier = reach(wanted, lambda n: [p for i in n.inputs if i is not None and (p := i.producer()) is not None])
    return {later[key].op_type for key in later.keys() & earlier.keys()}


def _what(node: ir.Node) -> str:
    return f"{node.op_type} {_name(node)}"


def _name(node: ir.Node) -> str:
    return repr(node.name or (node.outputs[0].name if node.outputs else "") or "")
