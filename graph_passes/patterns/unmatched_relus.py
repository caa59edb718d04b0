"""Find every ReLU between two MatMuls that the FFN pattern did not match, and explain why.

The pattern (ffn_pattern.py) starts at a linear layer and expects known structure. This search starts at each ReLU and
only needs a MatMul somewhere before and after it, with no other MatMul, Softmax or attention in between. So no FFN is
skipped silently: those that the pattern cannot recognize are listed with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import onnx_ir as ir

from graph_passes.patterns.activation_pattern import match_activation
from graph_passes.patterns.linear import Linear
from graph_passes.patterns.matmul_search import MAX_VALUES, MatMulSearch, is_convolution, is_matmul
from graph_passes.patterns.relu_in_quantize import rounds_negatives_to_zero
from graph_passes.weights.weight_source import nbits_weight, weight_behind

__all__ = ["unmatched_relus"]

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


def unmatched_relus(
    graph: ir.Graph | ir.Function, linears: dict[ir.Value, Linear], matched: Collection[int], search: MatMulSearch
) -> Iterator[tuple[ir.Node, str]]:
    """Yield (node, reason) for each ReLU between two MatMuls whose node id is not in ``matched``.

    A ReLU is:
    1. anything that `match_activation` recognizes;
    2. a MatMul with a fused ReLU;
    3. rounding to integers with the smallest integer as zero point, right after a MatMul: quantizers drop the ReLU
       before it, because the rounding has the same effect.
    """
    for node in graph:
        if id(node) in matched or not node.outputs:
            continue
        inside = _has_relu_inside(node)
        folded = not inside and rounds_negatives_to_zero(node, search)
        before, is_cut = [node], False
        if not (inside or folded):
            found = match_activation(node.outputs[0])
            if found is None or found.kind == "relu2" or node.op_type in ("Identity", "Dropout"):
                continue
            before, is_cut = search.matmuls(found.z, forward=False)
        after: list[ir.Node] = []
        if before:
            after, is_cut = search.matmuls(node.outputs[0], forward=True)
        if before and after:
            if inside:
                reason = f"the ReLU is fused into {_what(node)}; export without onnxruntime's graph optimizations"
            elif folded:
                reason = f"its activations are quantized: the ReLU is folded into the zero point of {_what(node)}"
            else:
                reason = _reason(node, before, after, linears, search)
            yield node, reason
        elif is_cut:
            yield node, f"no MatMul found within {MAX_VALUES} values of the ReLU; expected one before and one after"


def _has_relu_inside(node: ir.Node) -> bool:
    attribute = node.attributes.get("activation")
    is_text = attribute is not None and attribute.type == ir.AttributeType.STRING
    return is_matmul(node) and is_text and attribute.as_string() in ("Relu", "ThresholdedRelu")  # type: ignore[union-attr]


def _reason(
    node: ir.Node,
    before: list[ir.Node],
    after: list[ir.Node],
    linears: dict[ir.Value, Linear],
    search: MatMulSearch,
) -> str:
    sources = [p for v in after[0].inputs[:2] if v is not None for p in search.matmuls(v, forward=False)[0]]
    others = [matmul for matmul in sources if matmul not in before]  # up_proj, if the ReLU belongs to a gate
    matmuls = [before[0], after[0], *before[1:], *others, *after[1:]]
    owner = search.owner(node.graph)
    for matmul in matmuls:
        if reason := _of_kind(matmul):
            return reason
        if owner is not None and matmul.graph is not node.graph:
            return f"the ReLU is in the body of {owner.op_type} {_name(owner)}, but {_what(matmul)} is not"
        inner = search.owner(matmul.graph)
        if inner is not None and matmul.graph is not node.graph:
            return f"{_what(matmul)} is in the body of {inner.op_type} {_name(inner)}"
    known = {id(linear.matmul) for linear in linears.values()}
    passed = _between(before, node), _between([node], after)
    if "ReduceMean" in passed[0]:
        return "its threshold is computed per token from all neurons (Gaussian top-k)"
    if passed[0] & {"Gather", "GatherND", "Concat"}:
        return "mixture of experts: weights are selected per token at run time"
    for matmul in matmuls:
        if id(matmul) not in known:
            return _of_weight(matmul)
    if passed[1] & (_NORMS | {"Sqrt", "Reciprocal"}):
        return "a norm between the activation and down_proj needs every neuron"
    if passed[0] & {"Split", "Slice"}:
        return "gate_proj and up_proj are packed into one MatMul"
    if quantized := sorted((passed[0] | passed[1]) & {"QuantizeLinear", "DequantizeLinear"}):
        return f"its activations are quantized ({quantized[0]})"
    unknown = sorted(passed[0] | passed[1] - {"Mul", "Pow"}) or ["MatMul"]
    return f"its structure is not supported ({', '.join(unknown)})"


def _of_kind(matmul: ir.Node) -> str:
    """Return why this kind of MatMul is not supported, or ""."""
    if matmul.op_type == "MatMulNBits":
        weight = nbits_weight(matmul)
        return weight if isinstance(weight, str) else ""
    if "Integer" in matmul.op_type or matmul.op_type in ("QLinearMatMul", "QGemm", "DynamicQuantizeMatMul"):
        return f"its activations are quantized ({_what(matmul)}); expected a float MatMul"
    if is_convolution(matmul):
        return "it uses convolutions; expected MatMul, Gemm or MatMulNBits"
    if matmul.op_type not in ("MatMul", "Gemm"):
        return f"{_what(matmul)} is not supported; expected MatMul, Gemm or MatMulNBits"
    return ""


def _of_weight(matmul: ir.Node) -> str:
    """Return why a MatMul, Gemm or MatMulNBits is not a linear layer."""
    if matmul.op_type == "MatMulNBits":
        return f"the bias of {_what(matmul)} must be a constant of length d_out"
    attributes = matmul.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        return f"alpha and beta of {_what(matmul)} must be 1"
    if attributes.get_int("transA", 0):
        return f"transA of {_what(matmul)} must be 0"
    left, right = matmul.inputs[:2]
    weight = weight_behind(right)
    if isinstance(weight, str) and not isinstance(weight_behind(left), str):
        return f"the weight of {_what(matmul)} must be its second input"
    if isinstance(weight, str):
        return f"the weight of {_what(matmul)} {weight}"
    return f"the bias of {_what(matmul)} must be a constant of length d_out"


def _between(starts: list[ir.Node], ends: ir.Node | list[ir.Node]) -> set[str]:
    """Return the operator types on the paths from ``starts`` to ``ends``."""
    wanted = ends if isinstance(ends, list) else [ends]
    stop = {id(n) for n in (*starts, *wanted)}

    def reach(first: list[ir.Node], step: Callable[[ir.Node], list[ir.Node]]) -> dict[int, ir.Node]:
        seen: dict[int, ir.Node] = {}
        queue = [n for f in first for n in step(f)]
        for node in queue:  # grows
            if id(node) not in seen and id(node) not in stop and not is_matmul(node) and len(seen) < MAX_VALUES:
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
