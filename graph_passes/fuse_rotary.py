"""Fuse rotary position embedding (RoPE) into onnxruntime's operator."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.linear import constant_array, scalar_constant
from graph_passes.patterns.merged_heads import merged_heads

__all__ = ["FuseRotaryEmbeddingPass"]


class FuseRotaryEmbeddingPass(ir.passes.InPlacePass):
    """Replace ``t * cos + rotate_half(t) * sin`` by ``com.microsoft::RotaryEmbedding``.

    ``t`` is ``[batch, heads, sequence, head_dim]``. ``cos`` and ``sin`` are computed in the graph, ``[batch,
    sequence, head_dim]`` with equal halves. They stay in the graph as the operator's cache, one row per token, so any
    scaling of the angles and any length work as exported. pack_qkv.py makes it a cache per position if possible.

    The result is a Reshape and Transpose of ``[batch, sequence, heads * head_dim]``, which the attention pass removes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        caches: dict[tuple[int, int], tuple[ir.Value, ir.Value, ir.Value]] = {}
        count = 0
        for node in list(model.graph):
            found = _match(node)
            if found is not None:
                _rewrite(model.graph, node, *found, caches)
                count += 1
        if count:
            model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified=count > 0)


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return (t, cos, sin) if ``node`` adds the two terms of RoPE, else None."""
    if node.op_type != "Add" or node.domain != "":
        return None
    for straight, rotated in (node.inputs, node.inputs[::-1]):
        left, right = _operands(straight, "Mul"), _operands(rotated, "Mul")
        if left is None or right is None:
            continue
        for t, cos in (left, left[::-1]):
            for half, sin in (right, right[::-1]):
                if t is None or not _is_rotate_half(half, t):
                    continue
                values = _per_token(cos, "Cos"), _per_token(sin, "Sin")
                if values[0] is not None and values[1] is not None:
                    return t, values[0], values[1]
    return None


def _operands(value: ir.Value | None, op_type: str) -> tuple[ir.Value | None, ...] | None:
    node = value.producer() if value is not None else None
    return tuple(node.inputs) if node is not None and node.op_type == op_type and node.domain == "" else None


def _is_rotate_half(value: ir.Value | None, t: ir.Value) -> bool:
    """``Concat(-t[..., d/2:], t[..., :d/2])`` on the last axis."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or t.shape is None or t.shape.rank() != 4:
        return False
    width = t.shape[3]
    if not isinstance(width, int) or width % 2 or node.attributes.get_int("axis", 0) not in (-1, 3):
        return False
    negated = _operands(node.inputs[0], "Neg")
    return (
        negated is not None
        and _slice_bounds(negated[0], t, width) == (width // 2, width)
        and _slice_bounds(node.inputs[1], t, width) == (0, width // 2)
    )


def _slice_bounds(value: ir.Value | None, source: ir.Value, width: int) -> tuple[int, int] | None:
    inputs = _operands(value, "Slice")
    if inputs is None or inputs[0] is not source or len(inputs) < 4:
        return None
    bounds = [constant_array(v) for v in inputs[1:]]
    if any(n is None or n.size != 1 for n in bounds):
        return None
    start, end, axis, *step = (int(n.reshape(-1)[0]) for n in bounds if n is not None)
    if axis not in (-1, 3) or step not in ([], [1]):
        return None
    return max(start + width, 0) if start < 0 else start, min(end, width) if end >= 0 else end + width


def _per_token(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """Return ``[batch, sequence, head_dim]`` behind ``Unsqueeze(., 1)`` if its two halves are equal."""
    inputs = _operands(value, "Unsqueeze")
    axes = constant_array(inputs[1]) if inputs is not None else None
    if inputs is None or axes is None or axes.tolist() != [1]:
        return None
    values = angles = inputs[0]
    scaled = _operands(values, "Mul")  # attention factor of scaled RoPE
    if scaled is not None:
        angles = next((v for v, c in (scaled, scaled[::-1]) if scalar_constant(c) is not None), None)
    function = _operands(angles, op_type)
    halves = _operands(function[0], "Concat") if function is not None else None
    if halves is None or len(halves) != 2 or halves[0] is not halves[1]:
        return None
    return values


def _rewrite(
    graph: ir.Graph,
    node: ir.Node,
    t: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    caches: dict[tuple[int, int], tuple[ir.Value, ir.Value, ir.Value]],
) -> None:
    assert t.shape is not None
    heads, width = t.shape[1], t.shape[3]
    assert isinstance(width, int)
    new = tape.Tape()
    key = (id(cos), id(sin))
    if key not in caches:
        caches[key] = _caches(new, cos, sin, width // 2)
    cos_cache, sin_cache, row = caches[key]
    rotated = new.op("RotaryEmbedding", [merged_heads(new, t), row, cos_cache, sin_cache], domain="com.microsoft")
    shape = new.op("Constant", [], {"value_ints": [0, 0, -1 if not isinstance(heads, int) else heads, width]})
    split = new.op("Reshape", [rotated, shape])
    result = new.op("Transpose", [split], {"perm": [0, 2, 1, 3]})
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), [old], [result])


def _caches(new: tape.Tape, cos: ir.Value, sin: ir.Value, half: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the two caches ``[batch * sequence, half]`` and each token's row in them, ``[batch, sequence]``."""
    bounds = [new.op("Constant", [], {"value_ints": [n]}) for n in (0, half, -1)]
    flat = new.op("Constant", [], {"value_ints": [-1, half]})
    caches = [new.op("Reshape", [new.op("Slice", [values, *bounds]), flat]) for values in (cos, sin)]
    zero, one = (new.op("Constant", [], {"value_int": n}) for n in (0, 1))
    tokens = new.op("Squeeze", [new.op("Shape", [caches[0]], {"start": 0, "end": 1})])
    rows = new.op("Range", [zero, tokens, one])
    row = new.op("Reshape", [rows, new.op("Shape", [cos], {"start": 0, "end": 2})])
    return caches[0], caches[1], row
