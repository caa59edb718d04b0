"""Replace FFNs of the ReLU family by the activation-sparse operators of custom_ops.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir
from onnx_ir import tape

from graph_passes import custom_ops, formats, function_bodies
from graph_passes.patterns.ffn_pattern import FfnMatch, FfnOutcome, find_ffns
from graph_passes.patterns.linear import Linear
from graph_passes.weights.store_weight import OutputPowers, WeightStore
from graph_passes.weights.weight_plan import WeightPlan

__all__ = ["FuseSparseFfnPass"]

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class FuseSparseFfnPass(ir.passes.InPlacePass):
    """Replace each FFN of the ReLU family by one operator.

    1. ``down( act(gate x) * up x )`` becomes ``com.prosparse::SparseGatedFFN*``;
    2. ``down( act(up x) )`` becomes ``com.prosparse::SparseFFN*``;
    3. any other FFN stays, and its outcome carries the reason.

    If weights keep their format, the rewrite is exact: it changes which kernel runs, not what is computed. Weights
    become neuron-major, ``[d_ff, d_model]``, in the requested format, and are computed lazily while they are written.
    float16 and bfloat16 activations are cast to float32 before the operator and back after it. The function bodies of
    the operators used are added to the model, in its opset.

    Args:
        outcomes: receives one entry per FFN, in graph order.
        weights: format of the FFNs' matrices, or of each matrix. None keeps their float type, and does not rewrite
            FFNs with integer weights, because converting those to our integer formats would round again.
        dense: FFNs that stay dense: reasons by the module path of down_proj.
        level: accuracy level of the operators with integer weights.
    """

    def __init__(
        self,
        outcomes: list[FfnOutcome] | None = None,
        weights: formats.FfnFormat | WeightPlan | None = "f32",
        dense: Mapping[str, str] | None = None,
        level: custom_ops.AccuracyLevel = 0,
    ) -> None:
        super().__init__()
        self._outcomes = outcomes
        self._plan = WeightPlan.of(weights) if isinstance(weights, str) else weights
        self._dense = dense or {}
        self._level = level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        opset = model.opset_imports.get("", custom_ops.OPSET)
        bodies: dict[str, ir.Function] = {}
        store = WeightStore(model.graph, self._plan.rounding if self._plan is not None else None)
        replaced: dict[ir.Value, ir.Value] = {}  # old and new outputs: the next FFN may read them
        for match in find_ffns(model.graph):
            plan = self._plan or _own_plan(match)
            is_whole = match.up is not None and match.down is not None
            modules = [linear.module for linear in _linears(match)]
            weights: formats.FfnFormat | None = None
            if plan is not None:
                weights = plan.ffn_format(modules) if is_whole else plan.ffn
            stays_dense = self._dense.get(match.down.module, "") if match.down is not None else ""
            reason = match.reason or stays_dense or ("" if weights is not None else _integer_weights(match))
            name = ""
            if not reason and weights is not None:
                kind = custom_ops.sparse_ffn if match.gate is None else custom_ops.sparse_gated_ffn
                reason = _add_body(bodies, model, kind(weights, self._level), match.activation, opset)
                if not reason:
                    assert plan is not None
                    name = kind(weights, self._level)
                    assert match.up is not None
                    assert match.down is not None
                    x = replaced.get(match.up.x, match.up.x)
                    replaced[match.down.output] = _rewrite(model.graph, match, x, name, weights, plan, store)
            if self._outcomes is not None:
                self._outcomes.append(_outcome(replace(match, reason=reason), name))
        for body in bodies.values():
            model.functions[body.identifier()] = body
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        return ir.passes.PassResult(model, modified=bool(replaced))


def _own_plan(match: FfnMatch) -> WeightPlan | None:
    """Return the plan that stores all matrices of an FFN exactly, in one float format, or None if they are integers."""
    kinds = {(linear.weight.kind, linear.weight.dtype) for linear in _linears(match)}
    if any(kind != "float" for kind, _ in kinds):
        return None
    dtypes = {dtype for _, dtype in kinds}
    return WeightPlan.of((formats.float_format(dtypes.pop()) if len(dtypes) == 1 else None) or "f32")


def _integer_weights(match: FfnMatch) -> str:
    """Return why an FFN with integer weights needs an explicit format."""
    kinds = {linear.weight.kind for linear in _linears(match)}
    if "nbits" in kinds:
        return (
            "its weights are 4-bit (MatMulNBits), with down_proj's scales along d_ff instead of d_model; "
            "--weights i4i8 keeps the 4-bit values of gate_proj and up_proj and rounds down_proj to 8 bits"
        )
    return "its weights are integers (DequantizeLinear); --weights f32 keeps their values, --weights i8 rounds them"


def _add_body(bodies: dict[str, ir.Function], model: ir.Model, name: str, activation: str, opset: int) -> str:
    """Add the body of operator ``name`` and return "", or return why the opset cannot express it."""
    known = bodies.get(name) or model.functions.get((custom_ops.DOMAIN, name, ""))
    try:
        body = function_bodies.function(name, opset, activation)
    except function_bodies.OpsetError as error:
        return str(error)
    if known is not None and not _same_body(known, body):
        if opset < function_bodies.OPSET_WITH_STRINGS:
            return f"opset {opset} supports one activation per operator, and another FFN uses a different one"
        if activation == "silu" or _same_body(known, function_bodies.function(name, opset, "silu")):
            return "silu cannot share a file with other activations, and another FFN uses one"
    bodies[name] = body
    return ""


def _same_body(one: ir.Function, other: ir.Function) -> bool:
    return list(ir.to_proto(one).node) == list(ir.to_proto(other).node)


def _linears(match: FfnMatch) -> list[Linear]:
    return [linear for linear in (match.gate, match.up, match.down) if linear is not None]


def _outcome(match: FfnMatch, op: str) -> FfnOutcome:
    linears = tuple(linear.module for linear in _linears(match))
    shape = (match.up.d_in, match.up.d_out) if match.up is not None else (0, 0)
    kinds = {linear.weight.kind for linear in _linears(match)}
    return FfnOutcome(
        match.layer,
        match.module,
        op,
        match.activation,
        match.threshold,
        *shape,
        match.reason,
        linears,
        match.node,
        next((kind for kind in ("nbits", "qdq", "float") if kind in kinds), ""),
    )


def _rewrite(
    graph: ir.Graph,
    match: FfnMatch,
    x: ir.Value,
    name: str,
    weights: formats.FfnFormat,
    plan: WeightPlan,
    store: WeightStore,
) -> ir.Value:
    assert match.up is not None
    assert match.down is not None
    parts = [("up_proj", match.up), ("down_proj", match.down)]
    if match.gate is not None:
        parts.insert(0, ("gate_proj", match.gate))
    new = tape.Tape()
    old = match.down.output
    half = x.dtype or match.up.weight.matmul_type
    is_half = half in _HALVES
    inputs = [new.op("Cast", [x], {"to": ir.DataType.FLOAT}) if is_half else x]
    powers: OutputPowers | None = None
    ffn = match.module or f"ffn.{match.layer}"
    again = sum((node.name or "").partition(":")[0] == ffn for node in graph)  # a module may run twice
    for role, linear in parts:
        module = linear.module or f"{ffn}.{role}"
        is_down = role == "down_proj"
        stored = formats.format_of(weights, is_down=is_down)
        if is_down:
            chosen = plan.chosen_powers(module, stored)
            powers = store.output_powers(linear.weight, module, stored, in_major=linear.in_major, chosen=chosen)
        inputs += store.neuron_major(
            linear.weight,
            module,
            stored,
            in_major=linear.in_major,
            is_down=is_down,
            importance=None if is_down else plan.importance.get(module),  # down_proj's columns are outputs
            rounded=plan.already_rounded(module, stored, is_down=is_down),
            powers=powers,
        )
        inputs.append(store.bias(linear.bias, linear.d_out, powers))
    node = f"{ffn}:{again + 1}" if again else ffn
    y = new.op(
        name,
        inputs,
        {"activation": match.activation, "threshold": match.threshold},
        domain=custom_ops.DOMAIN,
        name=node,
        metadata_props={"pkg.prosparse.module": match.module},
    )
    if powers is not None:
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
        y = new.op("Mul", [y, powers.value], name=f"{node}{custom_ops.SCALE_OUTPUTS}")
    if is_half:
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), old.shape
        y = new.op("Cast", [y], {"to": half})
    y.type, y.shape = old.type, old.shape
    last = old.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), [old], [y])
    return y
