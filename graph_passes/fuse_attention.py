"""Fuse attention with a KV cache into onnxruntime's GroupQueryAttention, keeping batch dynamic.

onnxruntime's operator counts a row's past as ``seqlens_k + 1 - sequence``, which knows right padding
only. transformers' exporter therefore fuses for batch 1 alone. Here every row is said to be full
(``seqlens_k = total - 1``) and the exported mask, which carries the left padding and the causal
order, enters as ``attention_bias``. That is right for any batch, in prefill from an empty cache and
in decode by one token. Several tokens after a non-empty past are the operator's own limit: batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.linear import constant_array, scalar_constant

__all__ = ["FuseGroupQueryAttentionPass"]

_RESHAPING = frozenset({"Reshape", "Transpose", "Expand", "Unsqueeze", "Identity"})


class FuseGroupQueryAttentionPass(ir.passes.InPlacePass):
    """Replace attention over ``Concat(past, new)`` by ``com.microsoft::GroupQueryAttention``.

    The operator with ``attention_bias`` exists since onnxruntime 1.21.

    Args:
        refusals: the reason is appended here for each attention that stays as it is.
    """

    def __init__(self, refusals: list[str] | None = None) -> None:
        super().__init__()
        self._refusals = refusals

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        lengths: dict[int, tuple[ir.Value, ir.Value]] = {}
        count = 0
        for node in list(model.graph):
            if node.op_type != "Softmax" or node.domain != "":
                continue
            found = _match(node)
            if isinstance(found, str):
                if self._refusals is not None:
                    self._refusals.append(f"attention {node.name or node.outputs[0].name}: {found}")
                continue
            _rewrite(model.graph, found, lengths)
            count += 1
        if count:
            model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified=count > 0)


@dataclass(frozen=True)
class _Attention:
    q: ir.Value  # [batch, heads, sequence, head_dim]
    k: ir.Value  # [batch, kv_heads, sequence, head_dim], rotated
    v: ir.Value
    past_k: ir.Value  # [batch, kv_heads, past, head_dim]
    past_v: ir.Value
    present_k: ir.Value
    present_v: ir.Value
    bias: ir.Value  # [batch or 1, 1 or heads, sequence, past + sequence]
    scale: float
    output: ir.Value  # [batch, sequence, heads * head_dim]
    heads: int
    kv_heads: int


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def _match(softmax: ir.Node) -> _Attention | str:
    added = _producer(softmax.inputs[0], "Add")
    if added is None:
        return "no mask is added to the scores"
    scores = _producer(added.inputs[0], "MatMul")
    bias = added.inputs[1]
    if scores is None or bias is None:
        return "the scores are no plain product of queries and keys"
    q, q_scale = _unscaled(scores.inputs[0])
    k, k_scale = _unscaled(scores.inputs[1])
    keys = _cache(k)
    uses = softmax.outputs[0].uses()
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return "the attention weights are used otherwise than with the values"
    values = _cache(uses[0].node.inputs[1])
    if keys is None or values is None:
        return "keys or values are no concatenation of a cache input and new ones"
    output = _output(uses[0].node.outputs[0])
    if output is None:
        return "the heads are not merged by Transpose and Reshape"
    kv_shape, q_shape = keys.inputs[0].shape, q.shape  # type: ignore[union-attr]
    if q_shape is None or kv_shape is None or not isinstance(q_shape[1], int) or not isinstance(kv_shape[1], int):
        return "the number of heads is unknown"
    if q_shape[1] % kv_shape[1]:
        return f"{q_shape[1]} heads do not share {kv_shape[1]} KV heads evenly"
    return _Attention(
        q=q,
        k=keys.inputs[1],  # type: ignore[arg-type]
        v=values.inputs[1],  # type: ignore[arg-type]
        past_k=keys.inputs[0],  # type: ignore[arg-type]
        past_v=values.inputs[0],  # type: ignore[arg-type]
        present_k=keys.outputs[0],
        present_v=values.outputs[0],
        bias=bias,
        scale=q_scale * k_scale,
        output=output,
        heads=q_shape[1],
        kv_heads=kv_shape[1],
    )


def _unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    assert value is not None
    node = _producer(value, "Mul")
    if node is not None:
        for inner, factor in (node.inputs, node.inputs[::-1]):
            number = scalar_constant(factor)
            if number is not None and inner is not None:
                return inner, number
    return value, 1.0


def _cache(value: ir.Value | None) -> ir.Node | None:
    """Return ``Concat(past, new)`` on the sequence axis behind the repetition of KV heads, or None.

    Repetition must be ``Unsqueeze`` on axis 2, then ``Expand``: neighbouring heads share a KV head,
    which is the operator's order too.
    """
    while (node := _producer(value, *_RESHAPING)) is not None:
        axes = constant_array(node.inputs[1]) if node.op_type == "Unsqueeze" else None
        if node.op_type == "Unsqueeze" and (axes is None or axes.tolist() != [2]):
            return None
        value = node.inputs[0]
    node = _producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or node.attributes.get_int("axis", 0) not in (-2, 2):
        return None
    past, present = node.inputs[0], node.outputs[0]
    return node if past is not None and past.is_graph_input() and present.is_graph_output() else None


def _output(value: ir.Value) -> ir.Value | None:
    """Follow ``Where(nothing attended, 0, .)``, Transpose and Reshape to ``[batch, sequence, heads * head_dim]``."""
    for wanted in ("Where", "Transpose", "Reshape"):
        uses = value.uses()
        if len(uses) != 1 or value.is_graph_output():
            return None
        node = uses[0].node
        if wanted == "Where" and node.op_type == "Where" and uses[0].idx == 2:
            value = node.outputs[0]  # only rows of padding attend to nothing, and nothing attends to them
        elif wanted == "Transpose" and node.op_type == "Transpose":
            if list(node.attributes.get_ints("perm", [])) != [0, 2, 1, 3]:
                return None
            value = node.outputs[0]
        elif wanted == "Reshape" and node.op_type == "Reshape":
            value = node.outputs[0]
        elif wanted != "Where":
            return None
    return value


def _merged(new: tape.Tape, value: ir.Value) -> ir.Value:
    """Return ``[batch, sequence, heads * head_dim]`` of ``[batch, heads, sequence, head_dim]``."""
    transpose = _producer(value, "Transpose")
    split = _producer(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is not None and list(transpose.attributes.get_ints("perm", [])) == [0, 2, 1, 3] and split is not None:
        source = split.inputs[0]
        if source is not None and (source.shape is None or source.shape.rank() == 3):
            return source
    flat = new.op("Transpose", [value], {"perm": [0, 2, 1, 3]})
    return new.op("Reshape", [flat, new.op("Constant", [], {"value_ints": [0, 0, -1]})])


def _lengths(new: tape.Tape, attention: _Attention) -> tuple[ir.Value, ir.Value]:
    """Return ``seqlens_k`` [batch] and ``total_sequence_length`` [], both int32, from the mask's shape."""
    total = new.op("Cast", [new.op("Shape", [attention.bias], {"start": 3, "end": 4})], {"to": ir.DataType.INT32})
    one = new.op("Constant", [], {"value": ir.tensor([1], dtype=ir.DataType.INT32)})
    batch = new.op("Shape", [attention.past_k], {"start": 0, "end": 1})
    seqlens = new.op("Expand", [new.op("Sub", [total, one]), batch])
    return seqlens, new.op("Squeeze", [total])


def _rewrite(graph: ir.Graph, found: _Attention, lengths: dict[int, tuple[ir.Value, ir.Value]]) -> None:
    new = tape.Tape()
    if id(found.bias) not in lengths:
        lengths[id(found.bias)] = _lengths(new, found)
    seqlens, total = lengths[id(found.bias)]
    q, k, v = (_merged(new, value) for value in (found.q, found.k, found.v))
    results = new.op_multi_out(
        "GroupQueryAttention",
        [q, k, v, found.past_k, found.past_v, seqlens, total, None, None, None, found.bias],
        {"num_heads": found.heads, "kv_num_heads": found.kv_heads, "scale": found.scale},
        num_outputs=3,
        domain="com.microsoft",
    )
    olds = [found.output, found.present_k, found.present_v]
    for old, result in zip(olds, results, strict=True):
        result.type, result.shape = old.type, old.shape
    last = found.output.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), olds, list(results))
