"""Find FFNs, and determine for each whether it can become a sparse operator or why not."""

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
from graph_passes.patterns.matmul_search import MatMulSearch, bodies_of
from graph_passes.patterns.unmatched_relus import unmatched_relus

__all__ = ["FfnMatch", "FfnOutcome", "find_ffns"]

# Nodes allowed between up_proj and down_proj. With any other (a Softmax, a norm's ReduceMean), the second MatMul is not
# a down_proj. Shape with Expand or ConstantOfShape broadcasts a constant, as threshold and zeros_like are exported.
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
_MAX_NODES = 32  # between up_proj and down_proj; the tanh form of GELU has 9


@dataclass(frozen=True)
class FfnOutcome:
    """Result of the rewrite for one FFN.

    Attributes:
        layer: layer number from the module path, or else the FFN's index in the graph.
        module: module path, such as ``model.layers.3.mlp``, or "".
        op: the operator that replaced it, or "" if it was not rewritten.
        activation: relu, relu2, fatrelu, drelu or silu; "" if unknown.
        threshold: as the operator's attribute.
        d_model: model width.
        d_ff: number of neurons.
        reason: why it was not rewritten, or "".
        linears: module paths of its linear layers, gate_proj first, down_proj last.
        node: name of its last node (down_proj's MatMul or Add), or of its ReLU if only that was recognized.
        source: storage of its weights in the source graph: float, qdq (DequantizeLinear), nbits (MatMulNBits), or "".
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

    @property
    def rewritten(self) -> bool:
        """Whether an operator replaced the FFN."""
        return not self.reason

    def __str__(self) -> str:
        """Return one line for the terminal."""
        if self.reason:
            return f"layer {self.layer}: {self.reason}"
        above = f", threshold {self.threshold:g}" if self.threshold else ""
        return f"layer {self.layer}: {self.op} ({self.activation}{above}, d_model {self.d_model}, d_ff {self.d_ff})"


@dataclass(frozen=True)
class FfnMatch:
    """An FFN: ``down( act(gate x) * up x )``, or ``down( act(up x) )`` if ``gate`` is None.

    ``reason`` tells why it cannot be rewritten, and is "" if it can. If only the ReLU was recognized, ``up`` and
    ``down`` are None.
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


def find_ffns(graph: ir.Graph, search: MatMulSearch | None = None) -> list[FfnMatch]:
    """Return all FFNs of ``graph`` in order, whether they can be rewritten or not.

    Every other ReLU between two MatMuls counts as an FFN too (unmatched_relus.py), and so does every FFN in the body
    of an If, Loop or Scan; neither can be rewritten.

    Args:
        graph: the graph to search.
        search: that of the main graph, if ``graph`` is a body.
    """
    search = search or MatMulSearch(graph)
    linears = find_linears(graph)
    matches: list[FfnMatch] = []
    ends: dict[int, FfnMatch] = {}
    for down in linears.values():
        match = _match(down, linears, ordinal=len(matches))
        if match is None:
            continue
        above = next((ends[id(w)] for w in (match.up, match.gate) if w is not None and id(w) in ends), None)
        if above is not None and not match.reason:
            match = replace(match, reason=f"its up_proj is the down_proj of another FFN, {above.node}")
        if not match.reason:
            ends[id(down)] = match
        matches.append(match)
    order = {id(node): position for position, node in enumerate(graph)}
    matched = {id(node) for match in matches for node in match.interior}
    for node, reason in unmatched_relus(graph, linears, matched, search):
        module = module_scope(node).rpartition(".")[0]
        name = node.name or node.outputs[0].name or ""
        matches.append(FfnMatch(_layer(module, len(matches)), module, None, None, None, "", 0.0, reason, name, (node,)))
    matches.sort(key=lambda match: order.get(id(match.interior[0]), 0))
    return matches + list(_in_bodies(graph, search))


def _in_bodies(graph: ir.Graph, search: MatMulSearch) -> Iterator[FfnMatch]:
    for node in graph:
        for body in bodies_of(node):
            for match in find_ffns(body, search):
                where = f"{node.op_type} {node.name or node.outputs[0].name!r}"
                yield replace(match, reason=match.reason or f"it is in the body of {where}; expected the main graph")


def _layer(module: str, ordinal: int) -> int:
    number = re.search(r"\.(\d+)(?=\.|$)", module)
    return int(number.group(1)) if number else ordinal


def _match(down: Linear, linears: dict[ir.Value, Linear], ordinal: int) -> FfnMatch | None:
    found = _between(down.x, linears)
    if found is None:
        return None
    sources, interior = found
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
        if node.op_type not in _ELEMENTWISE or len(interior) == _MAX_NODES:
            return None
        seen.add(id(node))
        interior.append(node)
        stack.extend(v for v in node.inputs if v is not None)
    return (list(sources.values()), interior) if interior else None


def _classify(hidden: ir.Value, linears: dict[ir.Value, Linear]) -> tuple[Linear | None, Linear | None, str, float]:
    """Return (gate, up, activation, threshold); up is None if the activation is not of the ReLU family."""
    hidden = without_identities(hidden)
    ungated = match_activation(hidden)
    if ungated is not None and ungated.kind != "silu" and (z := without_identities(ungated.z)) in linears:
        return None, linears[z], ungated.kind, ungated.threshold
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
    """Return why an FFN with a ReLU cannot be rewritten, or ""."""
    if up.d_in != down.d_out:
        return f"input width {up.d_in} differs from output width {down.d_out}; both must be d_model"
    dtype = up.x.dtype or up.weight.matmul_type
    if dtype not in _FLOATS:
        return f"its input has type {dtype.name}; expected FLOAT, FLOAT16 or BFLOAT16"
    inside = [output for node in interior for output in node.outputs]
    inside += [linear.output for linear in (gate, up) if linear is not None]
    nodes = {id(node) for node in interior} | {id(use.node) for use in down.x.uses()}
    for value in inside:
        if value.is_graph_output() or any(id(use.node) not in nodes for use in value.uses()):
            return f"{value.name!r} is also used outside the FFN"
    if len(down.x.uses()) != 1:
        return f"{down.x.name!r} is also used outside the FFN"
    return ""
