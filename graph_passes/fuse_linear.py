"""Store the matrices outside FFNs in the operators' formats: projections, lm_head, embedding."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from graph_passes import custom_ops, formats, function_bodies
from graph_passes.patterns.linear import Linear, find_linears, module_scope
from graph_passes.weights.quantized_gather import gathered_rows
from graph_passes.weights.store_weight import WeightStore
from graph_passes.weights.weight_source import Weight, is_parameter

__all__ = ["FuseLinearPass", "LinearOutcome"]


@dataclass(frozen=True)
class LinearOutcome:
    """A matrix outside FFNs that is now stored in ``weights``.

    Attributes:
        module: module path, such as ``model.layers.0.self_attn.q_proj``, or "" if unknown.
        op: the operator that reads it: ``Linear*``, or ``Gather`` for the embedding.
        d_in: input features; for the embedding, rows.
        d_out: output features.
        weights: the format.
    """

    module: str
    op: str
    d_in: int
    d_out: int
    weights: formats.Format


class FuseLinearPass(ir.passes.InPlacePass):
    """Replace linear layers by ``com.prosparse::Linear*``, and store the embedding in the same format.

    1. ``MatMul(x, W)`` or ``Gemm``, with or without bias, becomes ``Linear*``: q, k, v, o, lm_head, and FFNs that stay
       dense.
    2. ``Gather(W, input_ids)`` gathers stored rows and converts them to float32 with standard operators. A matrix that
       both use (tied embeddings) is stored once.

    In f32 the MatMuls stay, because onnxruntime's are as fast. They and their matrices are named after the PyTorch
    modules, so that validation finds them.

    Args:
        weights: the format.
        outcomes: one entry per matrix is appended here, in graph order.
    """

    def __init__(self, weights: formats.Format, outcomes: list[LinearOutcome] | None = None) -> None:
        super().__init__()
        self._weights = weights
        self._names: set[str | None] = set()
        self._outcomes = outcomes if outcomes is not None else []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        if self._weights == "f32":
            return ir.passes.PassResult(model, modified=_name_matmuls(model.graph))
        store = WeightStore(model.graph)
        before = len(self._outcomes)
        self._names = {node.name for node in model.graph}
        replaced: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            if node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0:
                self._embedding(model.graph, node, store)
        for linear in find_linears(model.graph).values():
            if linear.weight.kind == "float" and linear.weight.matmul_type == ir.DataType.FLOAT:
                x = replaced.get(linear.x, linear.x)
                replaced[linear.output] = self._linear(model.graph, linear, x, store)
        if replaced:
            body = function_bodies.function(
                custom_ops.linear(self._weights), model.opset_imports.get("", custom_ops.OPSET), ""
            )
            model.functions[body.identifier()] = body
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        return ir.passes.PassResult(model, modified=len(self._outcomes) > before)

    def _linear(self, graph: ir.Graph, linear: Linear, x: ir.Value, store: WeightStore) -> ir.Value:
        old = linear.output
        module = linear.module or (linear.weight.value.name or "").removesuffix(".weight")
        name = custom_ops.linear(self._weights)
        new = tape.Tape()
        inputs = [x, *store.neuron_major(linear.weight, module, self._weights, in_major=linear.in_major)]
        inputs.append(store.bias(linear.bias, linear.d_out))
        node_name = module if module not in self._names else None  # a module may run twice
        self._names.add(module)
        y = new.op(
            name, inputs, domain=custom_ops.DOMAIN, name=node_name, metadata_props={"pkg.prosparse.module": module}
        )
        y.type, y.shape = old.type, old.shape
        last = old.producer()
        assert last is not None
        ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), [old], [y])
        self._outcomes.append(LinearOutcome(module, name, linear.d_in, linear.d_out, self._weights))
        return y

    def _embedding(self, graph: ir.Graph, node: ir.Node, store: WeightStore) -> None:
        table, ids = node.inputs
        tensor = table.const_value if table is not None and is_parameter(table) else None
        if tensor is None or table is None or ids is None or tensor.dtype != ir.DataType.FLOAT:
            return
        shape = tuple(tensor.shape.numpy())
        is_quantized = formats.is_quantized(self._weights)
        if len(shape) != 2 or not _are_tokens(ids) or (is_quantized and shape[1] % formats.QUANT_GROUP):
            return
        module = module_scope(node) or (table.name or "").removesuffix(".weight")
        weight = Weight(table, (shape[0], shape[1]), tensor.dtype, "float", tensor.numpy)
        stored = store.neuron_major(weight, module, self._weights, in_major=False)
        old = node.outputs[0]
        new = tape.Tape()
        rows = gathered_rows(new, stored, ids, self._weights, shape[1])
        rows.type, rows.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), [old], [rows])
        self._outcomes.append(LinearOutcome(module, "Gather", *shape, self._weights))


def _name_matmuls(graph: ir.Graph) -> bool:
    names = {node.name for node in graph}
    modified = False
    for linear in find_linears(graph).values():
        matrix, module, matmul = linear.weight.value, linear.module, linear.matmul
        if not module or module in names:  # already named, or the module runs twice
            continue
        names.add(module)
        matmul.name, modified = module, True
        name = f"{module}.weight_t" if linear.in_major else f"{module}.weight"
        if len(matrix.uses()) == 1 and matrix.is_initializer() and name not in graph.initializers:
            matrix.name = name
    return modified


def _are_tokens(ids: ir.Value) -> bool:
    """Return whether ``ids`` is input_ids, possibly left-aligned (fuse_attention.py) or reshaped."""
    seen: set[ir.Value] = set()
    waiting = [ids]
    while waiting:
        value = waiting.pop()
        if value.is_graph_input():
            if value.name == "input_ids":
                return True
            continue
        node = value.producer()
        if value not in seen and node is not None and node.inputs and node.inputs[0] is not None:
            seen.add(value)
            waiting.append(node.inputs[0])  # operators that move data take it as the first input
    return False
