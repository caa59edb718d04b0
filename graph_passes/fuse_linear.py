"""Store the matrices outside FFNs in the operators' formats: projections, lm_head, embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes import custom_ops, formats, function_bodies
from graph_passes.patterns.linear import Linear, find_linears, module_scope
from graph_passes.weights.narrow_tensor import NarrowTensor, narrow_reader
from graph_passes.weights.packed_names import PART_WIDTHS, packed_name, parts_of
from graph_passes.weights.quantized_gather import gathered_rows
from graph_passes.weights.store_weight import WeightStore
from graph_passes.weights.weight_plan import WeightPlan
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

    3. A packed projection whose parts have different formats becomes one ``Linear*`` for each run of equal formats,
       and Concat.

    In f32 the MatMuls stay, because onnxruntime's are as fast. They and their matrices are named after the PyTorch
    modules, so that validation finds them.

    Args:
        weights: the format, or that of each matrix.
        outcomes: one entry per matrix is appended here, in graph order.
        level: accuracy level of the operators with integer weights.
    """

    def __init__(
        self,
        weights: formats.Format | WeightPlan,
        outcomes: list[LinearOutcome] | None = None,
        level: custom_ops.AccuracyLevel = 0,
    ) -> None:
        super().__init__()
        self._level = level
        self._plan = WeightPlan.of(weights) if isinstance(weights, str) else weights
        self._names: set[str | None] = set()
        self._outcomes = outcomes if outcomes is not None else []
        self._slices: dict[
            tuple[ir.Value, int], tuple[Weight, ir.Value | None]
        ] = {}  # a module that runs twice is stored once

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        store = WeightStore(model.graph, self._plan.rounding)
        before = len(self._outcomes)
        self._names = {node.name for node in model.graph}
        replaced: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            if node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0:
                self._embedding(model.graph, node, store)
        used: set[formats.Format] = set()
        for linear in find_linears(model.graph).values():
            weights = {self._plan.linear_format(part) for part in parts_of(_module(linear))}
            is_float32 = linear.weight.kind == "float" and linear.weight.matmul_type == ir.DataType.FLOAT
            if is_float32 and "f32" not in weights:
                x = replaced.get(linear.x, linear.x)
                replaced[linear.output] = self._linear(model.graph, linear, x, store)
                used |= weights
        for stored in sorted(used):
            opset = model.opset_imports.get("", custom_ops.OPSET)
            body = function_bodies.function(custom_ops.linear(stored, self._level), opset, "")
            model.functions[body.identifier()] = body
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        named = _name_matmuls(model.graph)
        return ir.passes.PassResult(model, modified=named or len(self._outcomes) > before)

    def _linear(self, graph: ir.Graph, linear: Linear, x: ir.Value, store: WeightStore) -> ir.Value:
        old = linear.output
        new = tape.Tape()
        runs = [self._stored(new, part, weights, x, store) for part, weights in self._runs(linear)]
        y = runs[0] if len(runs) == 1 else new.op("Concat", runs, {"axis": -1})
        y.type, y.shape = old.type, old.shape
        last = old.producer()
        assert last is not None
        ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), [old], [y])
        return y

    def _runs(self, linear: Linear) -> list[tuple[Linear, formats.Format]]:
        """Return the parts of a packed projection that share a format; usually the projection itself."""
        module = _module(linear)
        parts = parts_of(module)
        chosen = [self._plan.linear_format(part) for part in parts]
        widths = [int(width) for width in linear.matmul.metadata_props.get(PART_WIDTHS, "").split()]
        if len(set(chosen)) == 1 or not widths:
            return [(replace(linear, module=module), max(chosen, key=lambda name: formats.FORMAT_SPECS[name].bits))]
        runs, first = [], 0
        for weights, run in groupby(range(len(parts)), key=lambda i: chosen[i]):
            indices = list(run)
            end = first + sum(widths[i] for i in indices)
            name = packed_name([parts[i] for i in indices]) if len(indices) > 1 else parts[indices[0]]
            runs.append((self._slice(linear, name, first, end), weights))
            first = end
        return runs

    def _slice(self, linear: Linear, module: str, first: int, end: int) -> Linear:
        """Return outputs ``first`` to ``end`` of a projection as a projection of their own."""
        source, rows = linear.weight, not linear.in_major
        key = (source.value, first)
        if key not in self._slices:

            def read() -> NDArray[np.generic]:
                matrix = source.read()
                return matrix[first:end] if rows else matrix[:, first:end]

            shape = (end - first, source.shape[1]) if rows else (source.shape[0], end - first)
            name = f"{module}.weight"
            tensor = NarrowTensor(read, shape, name)
            weight = replace(source, value=ir.Value(name=name, const_value=tensor), shape=shape, read=read)
            self._slices[key] = weight, _bias_slice(linear.bias, f"{module}.bias", first, end)
        weight, bias = self._slices[key]
        return replace(linear, module=module, bias=bias, weight=weight)

    def _stored(
        self, new: tape.Tape, linear: Linear, weights: formats.Format, x: ir.Value, store: WeightStore
    ) -> ir.Value:
        """Record the operator for a projection."""
        name, module = custom_ops.linear(weights, self._level), linear.module
        importance = self._plan.importance.get(parts_of(module)[0])
        inputs = [x]
        inputs += store.neuron_major(
            linear.weight,
            module,
            weights,
            in_major=linear.in_major,
            importance=importance,
            rounded=self._plan.already_rounded(module, weights),
        )
        inputs.append(store.bias(linear.bias, linear.d_out))
        node_name = module if module not in self._names else None  # a module may run twice
        self._names.add(module)
        y = new.op(
            name, inputs, domain=custom_ops.DOMAIN, name=node_name, metadata_props={"pkg.prosparse.module": module}
        )
        self._outcomes.append(LinearOutcome(module, name, linear.d_in, linear.d_out, weights))
        return y

    def _embedding(self, graph: ir.Graph, node: ir.Node, store: WeightStore) -> None:
        table, ids = node.inputs
        tensor = table.const_value if table is not None and is_parameter(table) else None
        if tensor is None or table is None or ids is None or tensor.dtype != ir.DataType.FLOAT:
            return
        module = module_scope(node) or (table.name or "").removesuffix(".weight")
        weights = self._plan.linear_format(module)
        shape = tuple(tensor.shape.numpy())
        is_quantized = formats.is_quantized(weights)
        if weights == "f32" or len(shape) != 2 or not _are_tokens(ids):
            return
        if is_quantized and shape[1] % formats.QUANT_GROUP:
            return
        weight = Weight(table, (shape[0], shape[1]), tensor.dtype, "float", narrow_reader(tensor))
        importance = self._plan.importance.get(module)
        stored = store.neuron_major(weight, module, weights, in_major=False, importance=importance)
        old = node.outputs[0]
        new = tape.Tape()
        rows = gathered_rows(new, stored, ids, weights, shape[1])
        rows.type, rows.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), [old], [rows])
        self._outcomes.append(LinearOutcome(module, "Gather", *shape, weights))


def _module(linear: Linear) -> str:
    return linear.module or (linear.weight.value.name or "").removesuffix(".weight")


def _bias_slice(bias: ir.Value | None, name: str, first: int, end: int) -> ir.Value | None:
    if bias is None or bias.const_value is None:
        return None
    return ir.Value(
        name=name, const_value=ir.tensor(bias.const_value.numpy().reshape(-1)[first:end].astype(np.float32))
    )


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
