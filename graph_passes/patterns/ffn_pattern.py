"""Find feed-forward blocks, and say of each why it can or cannot become a sparse operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from graph_passes.patterns.activation_pattern import (
    Activation,
    describe_activation,
    match_activation,
    without_identities,
)
from graph_passes.patterns.linear import Linear, find_linears, module_scope
from graph_passes.patterns.matmul_search import ProductSearch, bodies_of
from graph_passes.patterns.unmatched_relus import overlooked_relus

__all__ = ["FfnMatch", "FfnOutcome", "find_ffns"]

# What may stand between up_proj and down_proj. Anything else (a Softmax, a norm's ReduceMean) means
# that the second product does not belong to a feed-forward block. Shape with Expand or ConstantOfShape makes
# a constant as large as the activations, which is how threshold and zeros_like are exported.
_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "BiasGelu",
        "Cast",
        "Celu",
        "Clip",
        "ConstantOfShape",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "FastGelu",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
        "Where",
    ]
)
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_LARGEST_BLOCK = 32  # nodes between up_proj and down_proj; the tanh form of GELU has 9


@dataclass(frozen=True)
class FfnOutcome:
    """What became of one feed-forward block.

    Attributes:
        layer: layer number from the module path, else the block's ordinal in the graph.
        module: module path of the block, such as ``model.layers.3.mlp``, or "".
        op: the operator that it became, or "" if it was refused.
        activation: relu, relu2, fatrelu, drelu or silu; "" if refused.
        threshold: as the operator's attribute.
        d_model: model width.
        d_ff: number of neurons.
        reason: why it was refused, or "".
        linears: module paths of its linear layers, gate_proj first, down_proj last.
        node: name of the node that ends it (down_proj's product), or of its ReLU where no more of it was understood.
        source: what its weights were before: float, qdq (DequantizeLinear), nbits (MatMulNBits), or "".
    """

    layer: int
    module: str
    op: str
    activation: str
    threshold: float
    d_model: int
    d_ff: int
    reason: str
    linears: tuple[str, ...] = ()
    node: str = ""
    source: str = ""

    def __str__(self) -> str:
        """Return one line for the terminal."""
        if self.reason:
            return f"layer {self.layer}: {self.reason}"
        above = f", threshold {self.threshold:g}" if self.threshold else ""
        return f"layer {self.layer}: {self.op} ({self.activation}{above}, d_model {self.d_model}, d_ff {self.d_ff})"


@dataclass(frozen=True)
class FfnMatch:
    """A block: ``down( act(gate x) * up x )``, or ``down( act(up x) )`` where ``gate`` is None.

    ``reason`` tells why the block cannot be rewritten; it is "" if it can. A block of which only the ReLU was
    understood has neither ``up`` nor ``down``.
    """

    layer: int
    module: str
    gate: Linear | None
    up: Linear | None
    down: Linear | None
    activation: str
    threshold: float
    reason: str
    node: str
    interior: tuple[ir.Node, ...] = ()


def find_ffns(graph: ir.Graph, search: ProductSearch | None = None) -> list[FfnMatch]:
    """Return every feed-forward block of ``graph``, in order, rewritable or not.

    A ReLU between two products that is in none of them is a block too (overlooked_relu.py), and so is every block in
    the body of an If, Loop or Scan; neither can be rewritten.

    Args:
        graph: where to look.
        search: of the graph around, where ``graph`` is a body.
    """
    search = search or ProductSearch(graph)
    linears = find_linears(graph)
    matches: list[FfnMatch] = []
    ends: dict[int, FfnMatch] = {}
    for down in linears.values():
        match = _match(down, linears, ordinal=len(matches))
        if match is None:
            continue
        above = next((ends[id(w)] for w in (match.up, match.gate) if w is not None and id(w) in ends), None)
        if above is not None and not match.reason:
            match = replace(match, reason=f"its up_proj is down_proj of another block, {above.node}")
        if not match.reason:
            ends[id(down)] = match
        matches.append(match)
    order = {id(node): position for position, node in enumerate(graph)}
    taken = {id(node) for match in matches for node in match.interior}
    for node, reason in overlooked_relus(graph, linears, taken, search):
        module = module_scope(node).rpartition(".")[0]
        name = node.name or node.outputs[0].name or ""
        matches.append(FfnMatch(_layer(module, len(matches)), module, None, None, None, "", 0.0, reason, name, (node,)))
    matches.sort(key=lambda match: order.get(id(match.interior[0]), 0))
    return matches + list(_in_bodies(graph, search))


def _in_bodies(graph: ir.Graph, search: ProductSearch) -> Iterator[FfnMatch]:
    for node in graph:
        for body in bodies_of(node):
            for match in find_ffns(body, search):
                where = f"it is in the body of {node.op_type} {node.name or node.outputs[0].name!r}"
                yield replace(match, reason=match.reason or where)


def _layer(module: str, ordinal: int) -> int:
    number = re.search(r"\.(\d+)(?=\.|$)", module)
    return int(number.group(1)) if number else ordinal


def _match(down: Linear, linears: dict[ir.Value, Linear], ordinal: int) -> FfnMatch | None:
    block = _between(down.x, linears)
    if block is None:
        return None
    sources, interior = block
    if not 1 <= len(sources) <= 2 or len({id(s.x) for s in sources}) != 1 or sources[0].d_out != down.d_in:
        return None
    module = down.module.rpartition(".")[0]
    gate, up, activation, threshold = _classify(down.x, linears)
    if up is None:
        up = sources[-1]
        reason = describe_activation(interior, gated=len(sources) == 2)
    else:
        reason = _check(gate, up, down, interior)
    last = down.output.producer()
    name = (last.name if last is not None else "") or down.output.name or ""
    layer = _layer(module, ordinal)
    return FfnMatch(layer, module, gate, up, down, activation, threshold, reason, name, tuple(interior))


def _between(hidden: ir.Value, linears: dict[ir.Value, Linear]) -> tuple[list[Linear], list[ir.Node]] | None:
    """Walk from down_proj's input back to the linear layers that feed it, through elementwise nodes only."""
    stack, sources, interior, seen = [hidden], dict[int, Linear](), list[ir.Node](), set[int]()
    while stack:
        value = stack.pop()
        if value.is_initializer() and value.const_value is not None:
            continue
        if value in linears:
            sources[id(value)] = linears[value]
            continue
        node = value.producer()
        if node is None:
            return None  # a graph input
        if id(node) in seen or node.op_type == "Constant":
            continue
        if node.op_type not in _ELEMENTWISE or len(interior) == _LARGEST_BLOCK:
            return None
        seen.add(id(node))
        interior.append(node)
        stack.extend(v for v in node.inputs if v is not None)
    return (list(sources.values()), interior) if interior else None


def _classify(hidden: ir.Value, linears: dict[ir.Value, Linear]) -> tuple[Linear | None, Linear | None, str, float]:
    """Return (gate, up, activation, threshold); up is None where the block is not of the ReLU family."""
    hidden = without_identities(hidden)
    plain = match_activation(hidden)
    if plain is not None and plain.kind != "silu" and (z := without_identities(plain.z)) in linears:
        return None, linears[z], plain.kind, plain.threshold
    node = hidden.producer()
    if node is not None and node.op_type == "Mul" and node.domain == "":
        for first, second in (node.inputs, node.inputs[::-1]):
            if first is None or second is None:
                continue
            active = match_activation(first)
            if active is None or (z := without_identities(active.z)) not in linears:
                continue
            if (u := without_identities(second)) in linears:
                return linears[z], linears[u], active.kind, active.threshold
            other = match_activation(second)
            if other is not None and (u := without_identities(other.z)) in linears and _is_drelu(active, other):
                return linears[z], linears[u], "drelu", 0.0
    return None, None, "", 0.0


def _is_drelu(gate: Activation, up: Activation) -> bool:
    return gate.kind == up.kind == "relu" and gate.z is not up.z


def _check(gate: Linear | None, up: Linear, down: Linear, interior: list[ir.Node]) -> str:
    """Return why a ReLU block cannot be rewritten, or ""."""
    if up.d_in != down.d_out:
        return f"input width {up.d_in} differs from output width {down.d_out}: the operators have one d_model"
    dtype = up.x.dtype or up.weight.matmul_type
    if dtype not in _FLOATS:
        return f"its input is {dtype.name}: expected FLOAT, FLOAT16 or BFLOAT16"
    inside = [output for node in interior for output in node.outputs]
    inside += [linear.output for linear in (gate, up) if linear is not None]
    nodes = {id(node) for node in interior} | {id(use.node) for use in down.x.uses()}
    for value in inside:
        if value.is_graph_output() or any(id(use.node) not in nodes for use in value.uses()):
            return f"{value.name!r} is used outside of the block too"
    if len(down.x.uses()) != 1:
        return f"{down.x.name!r} is used outside of the block too"
    return ""
