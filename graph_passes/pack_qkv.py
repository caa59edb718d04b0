"""Pack the q, k and v projections into one MatMul, and move RoPE into attention: 6 nodes per layer instead of 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes.patterns.linear import SCOPES, Linear, find_linears, unscaled
from graph_passes.patterns.rope_cache import MOST_BYTES, RopeCaches
from graph_passes.weights.narrow_tensor import NarrowTensor
from graph_passes.weights.packed_names import PART_WIDTHS, packed_name

__all__ = ["PackQkvPass"]

_ROPE_MULTIPLE = 16  # GroupQueryAttention applies RoPE only if head_dim is a multiple of this


class PackQkvPass(ir.passes.InPlacePass):
    """Feed ``GroupQueryAttention`` from one MatMul with the concatenated matrices of q_proj, k_proj and v_proj.

    1. The projections must share their input, have no other readers, and have module paths and float32 matrices as
       traced (so this pass runs before they are stored in other formats). Biases are packed too.
    2. RoPE between them and the operator moves into the operator, with a cos/sin cache per position. The operator
       derives positions from attention_mask, so position_ids is no longer read.
    3. A constant that scales the queries (OPT) becomes the operator's scale.

    With any other RoPE (angles that depend on the sequence length, part of each head, norms in between) the three
    MatMuls stay.

    Args:
        positions: context length in tokens, or None if it is unknown, which rules out a cos/sin cache.
        warnings: receives a line if cos/sin caches would be too large.
    """

    def __init__(self, positions: int | None = None, warnings: list[str] | None = None) -> None:
        super().__init__()
        self._positions = positions
        self._warnings = warnings

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        graph = model.graph
        linears = find_linears(graph)
        caches = RopeCaches(graph, self._positions)
        packed: dict[tuple[object, ...], _Packed] = {}
        count = 0
        for node in list(graph):
            if node.op_type == "GroupQueryAttention" and node.domain == "com.microsoft":
                found = _match(node, linears, caches)
                if found is not None:
                    _rewrite(graph, node, found, packed)
                    count += 1
        if caches.too_large and self._warnings is not None:
            size = -(-caches.too_large >> 20)
            self._warnings.append(
                f"RoPE: cos/sin caches for {self._positions} positions would take {size} MiB each; the most is "
                f"{MOST_BYTES >> 20}: cosines are computed in every call, and q_proj, k_proj and v_proj "
                "stay separate"
            )
        return ir.passes.PassResult(model, modified=count > 0)


@dataclass(frozen=True)
class _Packed:
    matrix: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True)
class _Packable:
    parts: tuple[Linear, Linear, Linear]  # q, k, v
    name: str
    caches: tuple[ir.Value, ...] = ()  # cos, sin; empty without RoPE
    scale: float = 1.0  # of the queries


def _match(node: ir.Node, linears: dict[ir.Value, Linear], caches: RopeCaches) -> _Packable | None:
    q, k, v = node.inputs[:3]
    if len(node.inputs) != 7 or q is None or k is None or v is None:  # already packed, or has unknown inputs
        return None
    rope, other = _rope(q), _rope(k)
    if rope is not None and other is not None:
        if rope.inputs[1:] != other.inputs[1:] or len(q.uses()) != 1 or len(k.uses()) != 1:
            return None
        q, k = rope.inputs[0], other.inputs[0]
    elif rope is not other:
        return None
    q, scale = unscaled(q)
    if not scale:  # the operator takes 0 as its default
        return None
    parts = tuple(linears[value] for value in (q, k, v) if value in linears)
    if len(parts) != 3 or not _are_alike(parts):
        return None
    name = packed_name([part.module for part in parts])
    if not name:
        return None
    if rope is None:
        return _Packable(parts, name, scale=scale)
    if parts[0].d_out // node.attributes.get_int("num_heads", 1) % _ROPE_MULTIPLE:
        return None
    found = caches.cache(rope.inputs[2], "Cos"), caches.cache(rope.inputs[3], "Sin")
    if found[0] is None or found[1] is None:
        return None
    return _Packable(parts, name, (found[0], found[1]), scale)


def _rope(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "RotaryEmbedding" and node.domain == "com.microsoft" else None


def _are_alike(parts: Sequence[Linear]) -> bool:
    return all(
        part.x is parts[0].x
        and part.in_major == parts[0].in_major
        and part.matmul.op_type == "MatMul"
        and part.weight.kind == "float"
        and part.weight.dtype == part.weight.matmul_type == ir.DataType.FLOAT
        and len(part.output.uses()) == 1
        and not part.output.is_graph_output()
        for part in parts
    )


def _rewrite(graph: ir.Graph, node: ir.Node, found: _Packable, packed: dict[tuple[object, ...], _Packed]) -> None:
    parts = found.parts
    key = tuple((part.weight.value, part.in_major, part.bias) for part in parts)
    if key not in packed:  # a module that runs twice is stored once
        new = tape.Tape(graph)
        matrix = new.initializer(_matrix(parts, f"{found.name}.weight" + ("_t" if parts[0].in_major else "")))
        has_bias = any(part.bias is not None for part in parts)
        packed[key] = _Packed(matrix, new.initializer(_bias(parts, f"{found.name}.bias")) if has_bias else None)
    matrix, bias = packed[key].matrix, packed[key].bias
    new = tape.Tape()
    if not parts[0].in_major:
        matrix = new.op("Transpose", [matrix], {"perm": [1, 0]})
    scope = {SCOPES: repr(["", found.name, "linear"]), PART_WIDTHS: " ".join(str(part.d_out) for part in parts)}
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
        [y, None, None, *node.inputs[3:], *found.caches],
        attributes | ({"do_rotary": 1} if found.caches else {}),
        num_outputs=3,
        domain="com.microsoft",
    )
    for old, result in zip(node.outputs, results, strict=True):
        result.type, result.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), list(node.outputs), list(results))


def _matrix(parts: Sequence[Linear], name: str) -> NarrowTensor:
    in_major = parts[0].in_major
    shape = [sum(part.d_out for part in parts), parts[0].d_in]
    reads = [part.weight.read for part in parts]

    def read() -> NDArray[np.generic]:
        matrices = [one() for one in reads]
        if len({matrix.dtype for matrix in matrices}) > 1:
            matrices = [matrix.astype(np.float32) for matrix in matrices]
        rows = np.concatenate([matrix.T if in_major else matrix for matrix in matrices])  # PyTorch's layout: no strides
        return rows.T if in_major else rows

    return NarrowTensor(read, shape[::-1] if in_major else shape, name)


def _bias(parts: Sequence[Linear], name: str) -> ir.TensorProtocol:
    return ir.tensor(np.concatenate([_part_bias(part) for part in parts]), name=name)


def _part_bias(part: Linear) -> NDArray[np.float32]:
    if part.bias is None or part.bias.const_value is None:
        return np.zeros(part.d_out, np.float32)
    bias: NDArray[np.float32] = part.bias.const_value.numpy().reshape(-1)
    return bias
