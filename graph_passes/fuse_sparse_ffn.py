"""Replace ReLU-like feed-forward blocks by the activation-sparse operators of custom_ops.py."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes import custom_ops
from graph_passes.ffn_pattern import FfnMatch, FfnOutcome, find_ffns
from graph_passes.linear import Linear

__all__ = ["FuseSparseFfnPass"]


class FuseSparseFfnPass(ir.passes.InPlacePass):
    """Replace each feed-forward block of the ReLU family by one operator.

    1. ``down( act(gate x) * up x )`` becomes ``com.prosparse::SparseGatedFFNF32``;
    2. ``down( act(up x) )`` becomes ``com.prosparse::SparseFFNF32``;
    3. any other block stays, and its outcome carries the reason.

    The rewrite is exact: it changes which kernel runs, not what is computed. Weights become
    neuron-major, ``[d_ff, d_model]``, lazily: a transposed one is made while it is written.
    The function bodies of the operators used are added to the model.

    Args:
        outcomes: one entry per block is appended here, in graph order.
    """

    def __init__(self, outcomes: list[FfnOutcome] | None = None) -> None:
        super().__init__()
        self._outcomes = outcomes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        opset = model.opset_imports.get("", custom_ops.OPSET)
        used = set[str]()
        for match in find_ffns(model.graph):
            name = ""
            if not match.reason:
                name = _rewrite(model.graph, match)
                used.add(name)
            if self._outcomes is not None:
                self._outcomes.append(_outcome(match, name))
        for name in sorted(used):
            body = custom_ops.function(name, opset)
            model.functions[body.identifier()] = body
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        return ir.passes.PassResult(model, modified=bool(used))


def _outcome(match: FfnMatch, op: str) -> FfnOutcome:
    return FfnOutcome(
        match.layer, match.module, op, match.activation, match.threshold, match.up.d_in, match.up.d_out, match.reason
    )


def _rewrite(graph: ir.Graph, match: FfnMatch) -> str:
    inputs = [match.up.x]
    parts = [("up_proj", match.up), ("down_proj", match.down)]
    name = custom_ops.SPARSE_FFN_F32
    if match.gate is not None:
        parts.insert(0, ("gate_proj", match.gate))
        name = custom_ops.SPARSE_GATED_FFN_F32
    block = match.module or f"ffn.{match.layer}"
    for role, linear in parts:
        module = linear.module or f"{block}.{role}"
        inputs.append(_neuron_major(graph, linear, module, is_down=role == "down_proj"))
        inputs.append(linear.bias if linear.bias is not None else _zeros(graph, linear.d_out))
    node = ir.node(
        name,
        inputs,
        {"activation": match.activation, "threshold": match.threshold},
        domain=custom_ops.DOMAIN,
        name=block,
        metadata_props={"pkg.prosparse.module": match.module},
    )
    old = match.down.output
    node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    last = old.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, last, [last], [node], [old], list(node.outputs))
    return name


def _neuron_major(graph: ir.Graph, linear: Linear, module: str, *, is_down: bool) -> ir.Value:
    """Return an initializer ``[d_ff, d_model]`` of ``linear``'s weight, its own one where that is stored so."""
    if is_down == linear.in_major:
        return linear.weight
    source = linear.weight.const_value
    assert source is not None
    name = f"{module}.{'weight_t' if is_down else 'weight'}"
    if name in graph.initializers:  # two blocks may share a weight
        return graph.initializers[name]

    def transpose() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(source.numpy().T), name=name)

    shape = ir.Shape(source.shape.numpy()[::-1])
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(source.dtype))
    value.const_value = ir.LazyTensor(transpose, dtype=source.dtype, shape=shape, name=name)
    graph.register_initializer(value)
    return value


def _zeros(graph: ir.Graph, width: int) -> ir.Value:
    """Return the shared bias of zeros: the operators have no optional inputs (see docs/custom_ops.md)."""
    name = f"prosparse.zeros.{width}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.zeros(width, dtype=np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape([width]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
