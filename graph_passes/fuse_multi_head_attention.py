"""Fuse attention of encoders and encoder-decoders into onnxruntime's MultiHeadAttention."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.linear import unscaled
from graph_passes.patterns.merged_heads import attention_output, merged_heads, split_heads_source
from graph_passes.patterns.standard_nodes import producer

__all__ = ["FuseMultiHeadAttentionPass"]


class FuseMultiHeadAttentionPass(ir.passes.InPlacePass):
    """Replace ``MatMul(Softmax(scale * MatMul(q, k^T) + bias), v)`` by ``com.microsoft::MultiHeadAttention``.

    Every attention by itself: of encoders, of decoders over ``Concat(past, new)``, and across. The bias is any tensor
    that broadcasts to ``[batch, heads, queries, keys]``: a padding mask, causal order, T5's relative positions. As many
    heads of keys as of queries.

    Args:
        reasons: receives why each attention was not fused.
    """

    def __init__(self, reasons: list[str] | None = None) -> None:
        super().__init__()
        self._reasons = reasons

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        count = 0
        for node in list(model.graph):
            if node.op_type == "Softmax" and node.domain == "":
                found = _match(node)
                if isinstance(found, _Attention):
                    _rewrite(model.graph, found)
                    count += 1
                elif self._reasons is not None:
                    self._reasons.append(f"attention {node.name or node.outputs[0].name}: {found}")
        if count:
            model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified=count > 0)


@dataclass(frozen=True)
class _Attention:
    q: ir.Value  # [batch, heads, queries, head_dim]
    k: ir.Value  # [batch, keys, heads * head_dim], or [batch, heads, keys, head_dim] as in a cache
    v: ir.Value  # likewise
    length: ir.Value  # has the number of keys in dimension 2
    biases: tuple[ir.Value, ...]
    scale: float
    heads: int
    output: ir.Value  # [batch, queries, heads * head_dim]


def _match(softmax: ir.Node) -> _Attention | str:
    found = _scores(softmax.inputs[0])
    if found is None:
        return "the scores are not a MatMul of queries and keys"
    matmul, scale, biases = found
    q, q_scale = unscaled(matmul.inputs[0])
    turned, k_scale = unscaled(matmul.inputs[1])
    k = _transposed(turned)
    split = _split_and_transposed(turned)
    uses = list(softmax.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return "the attention weights are used outside the MatMul with the values"
    v = uses[0].node.inputs[1]
    output = attention_output(uses[0].node.outputs[0])
    if output is None:
        return "the heads are not merged by Transpose and Reshape"
    if v is None or (k is None and split is None):
        return "the keys are not transposed"
    heads = _heads(q)
    if heads is None or heads != _heads(v) or heads != (_heads(k) if k is not None else _heads(turned)):
        return "queries, keys and values do not have the same number of heads"
    sources = split if k is None else split_heads_source(k), split_heads_source(v)
    if sources[0] is not None and sources[1] is not None:
        k, source = sources
    elif k is not None:
        source = v
    else:
        return "keys and values have different layouts"
    if any(bias.shape is None or bias.shape.rank() != 4 for bias in biases):
        return "the mask does not have 4 dimensions"
    return _Attention(q, k, source, v, biases, scale * q_scale * k_scale, heads, output)  # type: ignore[arg-type]


def _scores(value: ir.Value | None) -> tuple[ir.Node, float, tuple[ir.Value, ...]] | None:
    """Return the MatMul, the scale and the biases of ``scale * MatMul(q, k^T) + bias + ...``, or None."""
    inner, scale = unscaled(value)
    matmul = producer(inner, "MatMul")
    if matmul is not None:
        return matmul, scale, ()
    added = producer(value, "Add")
    for scores, bias in () if added is None else (added.inputs, added.inputs[::-1]):
        found = _scores(scores)
        if found is not None and bias is not None:
            return found[0], found[1], (*found[2], bias)
    return None


def _transposed(value: ir.Value | None) -> ir.Value | None:
    """Return k if ``value`` is k^T, by one Transpose or by one of ``[batch * heads, keys, head_dim]``."""
    node = producer(value, "Transpose")
    if node is not None and list(node.attributes.get_ints("perm", [])) == [0, 1, 3, 2]:
        return node.inputs[0]
    split = producer(value, "Reshape")
    node = producer(split.inputs[0], "Transpose") if split is not None else None
    merged = producer(node.inputs[0], "Reshape") if node is not None else None
    if merged is None or node is None or list(node.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    return merged.inputs[0]


def _split_and_transposed(value: ir.Value) -> ir.Value | None:
    """Return ``[batch, keys, heads * head_dim]`` if ``value`` is it split into heads and transposed to k^T at once."""
    node = producer(value, "Transpose")
    split = producer(node.inputs[0], "Reshape") if node is not None else None
    if node is None or split is None or list(node.attributes.get_ints("perm", [])) != [0, 2, 3, 1]:
        return None
    source = split.inputs[0]
    return source if source is not None and source.shape is not None and source.shape.rank() == 3 else None


def _heads(value: ir.Value) -> int | None:
    shape = value.shape
    return shape[1] if shape is not None and shape.rank() == 4 and isinstance(shape[1], int) else None


def _rewrite(graph: ir.Graph, found: _Attention) -> None:
    new = tape.Tape()
    q = merged_heads(new, found.q)
    bias = found.biases[0] if found.biases else None
    for other in found.biases[1:]:
        bias = new.op("Add", [bias, other])
    if bias is not None:
        one = new.op("Constant", [], {"value_ints": [1, 1]})
        queries = new.op("Shape", [found.q], {"start": 2, "end": 3})
        keys = new.op("Shape", [found.length], {"start": 2, "end": 3})
        bias = new.op("Expand", [bias, new.op("Concat", [one, queries, keys], {"axis": 0})])
    result = new.op(
        "MultiHeadAttention",
        [q, found.k, found.v, None, None, bias] if bias is not None else [q, found.k, found.v],
        {"num_heads": found.heads, "scale": found.scale},
        domain="com.microsoft",
    )
    old = found.output
    result.type, result.shape = old.type, old.shape
    last = old.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), [old], [result])
