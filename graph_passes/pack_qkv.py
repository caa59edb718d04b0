"""One product for q, k and v, and the rotation inside attention: six operators a layer for ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes.patterns.linear import SCOPES, Linear, find_linears, unscaled
from graph_passes.patterns.position_tables import PositionTables
from graph_passes.weights.packed_names import packed_name

__all__ = ["PackQkvPass"]

_ROTARY_WIDTH = 16  # GroupQueryAttention rotates heads of a multiple of so many elements


class PackQkvPass(ir.passes.InPlacePass):
    """Give ``GroupQueryAttention`` one product with the matrices of q_proj, k_proj and v_proj, one after the other.

    1. The three read one input, nothing else reads what they give, all have float32 matrices as traced (so before they
       are stored in other formats) and module paths; biases are packed too.
    2. Rotary embedding between them and the operator moves into it, with tables of cos and sin by position. The
       operator counts positions by attention_mask, so position_ids is not read any more.
    3. A constant that scales the queries (OPT) goes into the operator's own scale.

    An attention that has rotary embedding otherwise (angles that depend on the text's length, a part of each head,
    norms between) keeps its three products.

    Args:
        positions: the longest text, in tokens; None if it is unknown, so that no tables can be made.
    """

    def __init__(self, positions: int | None = None) -> None:
        super().__init__()
        self._positions = positions

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        graph = model.graph
        linears = find_linears(graph)
        tables = PositionTables(graph, self._positions)
        packed: dict[tuple[object, ...], _Packed] = {}
        count = 0
        for node in list(graph):
            if node.op_type == "GroupQueryAttention" and node.domain == "com.microsoft":
                found = _match(node, linears, tables)
                if found is not None:
                    _rewrite(graph, node, found, packed)
                    count += 1
        return ir.passes.PassResult(model, modified=count > 0)


@dataclass(frozen=True)
class _Packed:
    matrix: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True)
class _Packable:
    parts: tuple[Linear, Linear, Linear]  # q, k, v
    name: str
    tables: tuple[ir.Value, ...] = ()  # cos, sin; none without rotary embedding
    scale: float = 1.0  # of the queries


def _match(node: ir.Node, linears: dict[ir.Value, Linear], tables: PositionTables) -> _Packable | None:
    q, k, v = node.inputs[:3]
    if len(node.inputs) != 7 or q is None or k is None or v is None:  # packed already, or with more than we know of
        return None
    rotation, other = _rotary(q), _rotary(k)
    if rotation is not None and other is not None:
        if rotation.inputs[1:] != other.inputs[1:] or len(q.uses()) != 1 or len(k.uses()) != 1:
            return None
        q, k = rotation.inputs[0], other.inputs[0]
    elif rotation is not other:
        return None
    q, scale = unscaled(q)
    if not scale:  # which the operator takes for its default
        return None
    parts = tuple(linears[value] for value in (q, k, v) if value in linears)
    if len(parts) != 3 or not _are_alike(parts):
        return None
    name = packed_name([part.module for part in parts])
    if not name:
        return None
    if rotation is None:
        return _Packable(parts, name, scale=scale)
    if parts[0].d_out // node.attributes.get_int("num_heads", 1) % _ROTARY_WIDTH:
        return None
    found = tables.table(rotation.inputs[2], "Cos"), tables.table(rotation.inputs[3], "Sin")
    if found[0] is None or found[1] is None:
        return None
    return _Packable(parts, name, (found[0], found[1]), scale)


def _rotary(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "RotaryEmbedding" and node.domain == "com.microsoft" else None


def _are_alike(parts: Sequence[Linear]) -> bool:
    return all(
        part.x is parts[0].x
        and part.in_major == parts[0].in_major
        and part.product.op_type == "MatMul"
        and part.weight.kind == "float"
        and part.weight.dtype == part.weight.matmul_type == ir.DataType.FLOAT
        and len(part.output.uses()) == 1
        and not part.output.is_graph_output()
        for part in parts
    )


def _rewrite(graph: ir.Graph, node: ir.Node, found: _Packable, packed: dict[tuple[object, ...], _Packed]) -> None:
    parts = found.parts
    key = tuple((part.weight.value, part.in_major, part.bias) for part in parts)
    if key not in packed:  # a module that runs twice has its matrices once
        new = tape.Tape(graph)
        matrix = new.initializer(_matrix(parts, f"{found.name}.weight" + ("_t" if parts[0].in_major else "")))
        has_bias = any(part.bias is not None for part in parts)
        packed[key] = _Packed(matrix, new.initializer(_bias(parts, f"{found.name}.bias")) if has_bias else None)
    matrix, bias = packed[key].matrix, packed[key].bias
    new = tape.Tape()
    if not parts[0].in_major:
        matrix = new.op("Transpose", [matrix], {"perm": [1, 0]})
    scope = {SCOPES: repr(["", found.name, "linear"])}
    y = new.op("MatMul", [parts[0].x, matrix], metadata_props=scope)
    if bias is not None:
        y = new.op("Add", [y, bias], metadata_props=scope)
    shape = parts[0].output.shape
    y.type = parts[0].output.type
    if shape is not None:
        y.shape = ir.Shape([*shape[:-1], sum(part.d_out for part in parts)])
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes["scale"] = node.attributes.get_float("scale", 0.0) * found.scale
    results = new.op_multi_out(
        "GroupQueryAttention",
        [y, None, None, *node.inputs[3:], *found.tables],
        attributes | ({"do_rotary": 1} if found.tables else {}),
        num_outputs=3,
        domain="com.microsoft",
    )
    for old, result in zip(node.outputs, results, strict=True):
        result.type, result.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), list(node.outputs), list(results))


def _matrix(parts: Sequence[Linear], name: str) -> ir.LazyTensor:
    in_major = parts[0].in_major
    shape = [sum(part.d_out for part in parts), parts[0].d_in]
    reads = [part.weight.read for part in parts]

    def read() -> ir.TensorProtocol:
        rows = np.concatenate([one().T if in_major else one() for one in reads])  # as PyTorch has them: no strided copy
        return ir.tensor(rows.T if in_major else rows, name=name)

    shape = shape[::-1] if in_major else shape
    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def _bias(parts: Sequence[Linear], name: str) -> ir.TensorProtocol:
    return ir.tensor(np.concatenate([_numbers(part) for part in parts]), name=name)


def _numbers(part: Linear) -> NDArray[np.float32]:
    if part.bias is None or part.bias.const_value is None:
        return np.zeros(part.d_out, np.float32)
    numbers: NDArray[np.float32] = part.bias.const_value.numpy().reshape(-1)
    return numbers
