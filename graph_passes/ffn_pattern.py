"""Find feed-forward blocks, and say of each why it can or cannot become a sparse operator."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from graph_passes.activation_pattern import Activation, describe_activation, match_activation
from graph_passes.linear import Linear, find_linears

__all__ = ["FfnMatch", "FfnOutcome", "find_ffns"]

# What may stand between up_proj and down_proj. Anything else (a Softmax, a norm's ReduceMean) means
# that the second product does not belong to a feed-forward block. Shape and Expand make a constant as
# large as the activations, which is how torch.nn.functional.threshold is exported.
_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Cast",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
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
        "QuickGelu",
        "FastGelu",
        "BiasGelu",
    ]
)
_LARGEST_BLOCK = 32  # nodes between up_proj and down_proj; the tanh form of GELU has 9


@dataclass(frozen=True)
class FfnOutcome:
    """What became of one feed-forward block.

    Attributes:
        layer: layer number from the module path, else the block's ordinal in the graph.
        module: module path of the block, such as ``model.layers.3.mlp``, or "".
        op: the operator that it became, or "" if it was refused.
        activation: relu, relu2, fatrelu or drelu; "" if refused.
        threshold: as the operator's attribute.
        d_model: model width.
        d_ff: number of neurons.
        reason: why it was refused, or "".
        linears: module paths of its linear layers, gate_proj first, down_proj last.
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

    def __str__(self) -> str:
        """Return one line for the terminal."""
        if self.reason:
            return f"layer {self.layer}: {self.reason}"
        above = f", threshold {self.threshold:g}" if self.threshold else ""
        return f"layer {self.layer}: {self.op} ({self.activation}{above}, d_model {self.d_model}, d_ff {self.d_ff})"


@dataclass(frozen=True)
class FfnMatch:
    """A block: ``down( act(gate x) * up x )``, or ``down( act(up x) )`` where ``gate`` is None.

    ``reason`` tells why the block cannot be rewritten; it is "" if it can.
    """

    layer: int
    module: str
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    threshold: float
    reason: str


def find_ffns(graph: ir.Graph) -> list[FfnMatch]:
    """Return every feed-forward block of ``graph``, in order, rewritable or not."""
    linears = find_linears(graph)
    matches: list[FfnMatch] = []
    for down in linears.values():
        match = _match(down, linears, ordinal=len(matches))
        if match is not None:
            matches.append(match)
    return matches


def _match(down: Linear, linears: dict[ir.Value, Linear], ordinal: int) -> FfnMatch | None:
    block = _between(down.x, linears)
    if block is None:
        return None
    sources, interior = block
    if not 1 <= len(sources) <= 2 or len({id(s.x) for s in sources}) != 1 or sources[0].d_out != down.d_in:
        return None
    module = down.module.rpartition(".")[0]
    layer = re.search(r"\.(\d+)(?=\.|$)", module)
    gate, up, activation, threshold = _classify(down.x, linears)
    if up is None:
        up = sources[-1]
        ops = describe_activation({node.op_type for node in interior})
        reason = f"{'gate' if len(sources) == 2 else 'activation'} is {ops}, not a ReLU"
    else:
        reason = _check(gate, up, down, interior)
    return FfnMatch(int(layer.group(1)) if layer else ordinal, module, gate, up, down, activation, threshold, reason)


def _between(hidden: ir.Value, linears: dict[ir.Value, Linear]) -> tuple[list[Linear], list[ir.Node]] | None:
    """Walk from down_proj's input back to the linear layers that feed it, through elementwise nodes only."""
    stack, sources, interior, seen = [hidden], dict[int, Linear](), list[ir.Node](), set[int]()
    while stack:
        value = stack.pop()
        if value in linears:
            sources[id(value)] = linears[value]
            continue
        node = value.producer()
        if node is None:
            if value.const_value is None:
                return None  # a graph input
            continue
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
    plain = match_activation(hidden)
    if plain is not None and plain.z in linears:
        return None, linears[plain.z], plain.kind, plain.threshold
    node = hidden.producer()
    if node is not None and node.op_type == "Mul" and node.domain == "":
        for first, second in (node.inputs, node.inputs[::-1]):
            if first is None or second is None:
                continue
            active = match_activation(first)
            if active is None or active.z not in linears:
                continue
            if second in linears:
                return linears[active.z], linears[second], active.kind, active.threshold
            other = match_activation(second)
            if other is not None and other.z in linears and _is_drelu(active, other):
                return linears[active.z], linears[other.z], "drelu", 0.0
    return None, None, "", 0.0


def _is_drelu(gate: Activation, up: Activation) -> bool:
    return gate.kind == up.kind == "relu" and gate.z is not up.z


def _check(gate: Linear | None, up: Linear, down: Linear, interior: list[ir.Node]) -> str:
    """Return why a ReLU block cannot be rewritten, or ""."""
    if up.d_in != down.d_out:
        return f"input width {up.d_in} differs from output width {down.d_out}: the operators have one d_model"
    named = [("up_proj", up), ("down_proj", down)] + ([("gate_proj", gate)] if gate is not None else [])
    for name, linear in named:
        assert linear.weight.const_value is not None
        dtype = linear.weight.const_value.dtype
        if dtype != ir.DataType.FLOAT:
            return f"{name}'s weight is {dtype.name}: expected FLOAT"
    inside = [output for node in interior for output in node.outputs]
    inside += [linear.output for _, linear in named if linear is not down]
    nodes = {id(node) for node in interior} | {id(use.node) for use in down.x.uses()}
    for value in inside:
        if value.is_graph_output() or any(id(use.node) not in nodes for use in value.uses()):
            return f"{value.name!r} is used outside of the block too"
    if len(down.x.uses()) != 1:
        return f"{down.x.name!r} is used outside of the block too"
    return ""
