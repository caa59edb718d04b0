"""Replace ReLU-like feed-forward blocks by the activation-sparse operators of custom_ops.py."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes import custom_ops
from graph_passes.ffn_pattern import FfnMatch, FfnOutcome, find_ffns
from graph_passes.linear import Linear
from graph_passes.weight_format import store

__all__ = ["FuseSparseFfnPass"]


class FuseSparseFfnPass(ir.passes.InPlacePass):
    """Replace each feed-forward block of the ReLU family by one operator.

    1. ``down( act(gate x) * up x )`` becomes ``com.prosparse::SparseGatedFFN*``;
    2. ``down( act(up x) )`` becomes ``com.prosparse::SparseFFN*``;
    3. any other block stays, and its outcome carries the reason.

    With f32 weights the rewrite is exact: it changes which kernel runs, not what is computed. Weights become
    neuron-major, ``[d_ff, d_model]``, in the format asked for, lazily: each is made while it is written.
    The function bodies of the operators used are added to the model.

    Args:
        outcomes: one entry per block is appended here, in graph order.
        weights: how the blocks' matrices are stored.
    """

    def __init__(self, outcomes: list[FfnOutcome] | None = None, weights: custom_ops.Format = "f32") -> None:
        super().__init__()
        self._outcomes = outcomes
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        opset = model.opset_imports.get("", custom_ops.OPSET)
        used = set[str]()
        for match in find_ffns(model.graph):
            name = ""
            if not match.reason:
                name = _rewrite(model.graph, match, self._weights)
                used.add(name)
            if self._outcomes is not None:
                self._outcomes.append(_outcome(match, name))
        for name in sorted(used):
            body = custom_ops.function(name, opset)
            model.functions[body.identifier()] = body
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        return ir.passes.PassResult(model, modified=bool(used))


def _outcome(match: FfnMatch, op: str) -> FfnOutcome:
    linears = [linear.module for linear in (match.gate, match.up, match.down) if linear is not None]
    shape = (match.up.d_in, match.up.d_out)
    return FfnOutcome(
        match.layer, match.module, op, match.activation, match.threshold, *shape, match.reason, tuple(linears)
    )


def _rewrite(graph: ir.Graph, match: FfnMatch, weights: custom_ops.Format) -> str:
    inputs = [match.up.x]
    parts = [("up_proj", match.up), ("down_proj", match.down)]
    name = custom_ops.sparse_ffn(weights)
    if match.gate is not None:
        parts.insert(0, ("gate_proj", match.gate))
        name = custom_ops.sparse_gated_ffn(weights)
    block = match.module or f"ffn.{match.layer}"
    for role, linear in parts:
        module = linear.module or f"{block}.{role}"
        inputs += _neuron_major(graph, linear, module, weights, is_down=role == "down_proj")
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


def _neuron_major(
    graph: ir.Graph, linear: Linear, module: str, weights: custom_ops.Format, *, is_down: bool
) -> list[ir.Value]:
    """Return the initializers that store ``linear``'s weight as ``[d_ff, d_model]``: its own one where that will do."""
    source = linear.weight.const_value
    assert source is not None
    transposed = is_down != linear.in_major
    if not transposed and weights == "f32":
        return [linear.weight]
    rows, cols = source.shape.numpy()[::-1] if transposed else source.shape.numpy()
    name = f"{module}.weight" + ("_t" if is_down else "") + ("" if weights == "f32" else f".{weights}")
    if name in graph.initializers:  # two blocks may share a weight
        return [value for key in (name, f"{name}_scale") if (value := graph.initializers.get(key)) is not None]

    def read() -> np.ndarray:
        array = source.numpy()
        return array.T if transposed else array

    values = []
    for tensor in store(read, (rows, cols), weights, name):
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    return values


def _zeros(graph: ir.Graph, width: int) -> ir.Value:
    """Return the shared bias of zeros: the operators have no optional inputs (see docs/custom_ops.md)."""
    name = f"prosparse.zeros.{width}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.zeros(width, dtype=np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape([width]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
