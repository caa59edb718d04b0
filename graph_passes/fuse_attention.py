"""Fuse attention with a KV cache into onnxruntime's GroupQueryAttention, for any batch and left padding.

The operator counts each row's tokens from slot 0 of the cache (``seqlens_k``), so it supports right padding only, and
transformers' exporter fuses for batch 1 only. (An ``attention_bias`` input could carry the exported mask, but needs
onnxruntime >= 1.22.) Only attention mixes tokens, so this pass left-aligns the rows of the *whole graph*
(left_align_rows.py). The cache is packed too: slot 0 holds a row's first real token.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from graph_passes.left_align_rows import left_align_rows, lm_head
from graph_passes.patterns.attention_mask import attention_window
from graph_passes.patterns.linear import constant_array, unscaled
from graph_passes.patterns.merged_heads import attention_output, merged_heads
from graph_passes.patterns.standard_nodes import producer

__all__ = ["FuseGroupQueryAttentionPass"]

_RESHAPING = frozenset({"Reshape", "Transpose", "Expand", "Unsqueeze", "Identity"})


class FuseGroupQueryAttentionPass(ir.passes.InPlacePass):
    """Replace attention over ``Concat(past, new)`` by ``com.microsoft::GroupQueryAttention``.

    Fuses all attentions of the graph or none, because left-aligned rows (see above) are correct only if every attention
    is the operator. The mask must encode causal order, padding, and at most a sliding window, which becomes
    ``local_window_size``. ``attention_mask`` must be contiguous in each row. Several tokens after a non-empty cache
    need batch 1, which is a limit of the operator.

    Args:
        reasons: receives why each attention was not fused.
    """

    def __init__(self, reasons: list[str] | None = None) -> None:
        super().__init__()
        self._reasons = reasons

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        inputs = {value.name: value for value in model.graph.inputs}
        found: list[_Attention] = []
        reasons: list[str] = []
        for node in model.graph:
            if node.op_type == "Softmax" and node.domain == "" and not _is_per_token(node):
                match = _match(node)
                if isinstance(match, str):
                    reasons.append(f"attention {node.name or node.outputs[0].name}: {match}")
                else:
                    found.append(match)
        head = lm_head(model.graph)
        if found and not {"input_ids", "attention_mask", "position_ids"} <= inputs.keys():
            reasons.append("attention: expected inputs input_ids, attention_mask and position_ids")
        elif found and head is None:
            reasons.append("attention: the first output is not computed by lm_head's MatMul")
        if reasons or not found:
            if self._reasons is not None:
                self._reasons.extend(reasons)
            return ir.passes.PassResult(model, modified=False)
        assert head is not None
        seqlens, total = left_align_rows(model.graph, inputs, head)
        for attention in found:
            _rewrite(model.graph, attention, seqlens, total)
        model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified=True)


@dataclass(frozen=True)
class _Attention:
    q: ir.Value  # [batch, heads, sequence, head_dim]
    k: ir.Value  # [batch, kv_heads, sequence, head_dim], rotated
    v: ir.Value
    past_k: ir.Value  # [batch, kv_heads, past, head_dim]
    past_v: ir.Value
    present_k: ir.Value
    present_v: ir.Value
    scale: float
    window: int  # of the last keys that a query sees; 0 for all
    output: ir.Value  # [batch, sequence, heads * head_dim]
    heads: int
    kv_heads: int


def _match(softmax: ir.Node) -> _Attention | str:
    added = producer(softmax.inputs[0], "Add")
    if added is None:
        return "no mask is added to the scores"
    scores = producer(added.inputs[0], "MatMul")
    bias = added.inputs[1]
    if scores is None or bias is None:
        return "the scores are not a MatMul of queries and keys"
    window = attention_window(bias)
    if isinstance(window, str):
        return window
    q, q_scale = unscaled(scores.inputs[0])
    k, k_scale = unscaled(scores.inputs[1])
    keys = _cache(k)
    uses = list(_unguarded(softmax.outputs[0]).uses())
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 0:
        return "the attention weights are used outside the MatMul with the values"
    values = _cache(uses[0].node.inputs[1])
    if keys is None or values is None:
        return "keys or values are not a Concat of a cache input and new entries"
    output = attention_output(uses[0].node.outputs[0])
    if output is None:
        return "the heads are not merged by Transpose and Reshape"
    kv_shape, q_shape = keys.inputs[0].shape, q.shape  # type: ignore[union-attr]
    if q_shape is None or kv_shape is None or not isinstance(q_shape[1], int) or not isinstance(kv_shape[1], int):
        return "the number of heads is unknown"
    if q_shape[1] % kv_shape[1]:
        return f"{q_shape[1]} heads are not a multiple of {kv_shape[1]} KV heads"
    if not isinstance(kv_shape[3], int) or kv_shape[3] % 8:
        return f"head_dim is {kv_shape[3]}; expected a multiple of 8"
    return _Attention(
        q=q,
        k=keys.inputs[1],  # type: ignore[arg-type]
        v=values.inputs[1],  # type: ignore[arg-type]
        past_k=keys.inputs[0],  # type: ignore[arg-type]
        past_v=values.inputs[0],  # type: ignore[arg-type]
        present_k=keys.outputs[0],
        present_v=values.outputs[0],
        scale=q_scale * k_scale,
        window=window,
        output=output,
        heads=q_shape[1],
        kv_heads=kv_shape[1],
    )


def _is_per_token(softmax: ir.Node) -> bool:
    """Return whether the Softmax is over something else than tokens, such as the experts of a router."""
    shape, uses = softmax.outputs[0].shape, list(softmax.outputs[0].uses())
    multiplies = any(use.node.op_type in ("MatMul", "Where", "IsNaN") for use in uses)
    return shape is not None and isinstance(shape[-1], int) and not multiplies


def _unguarded(weights: ir.Value) -> ir.Value:
    """Skip ``Where(IsNaN(w), 0, w)``, which zeroes rows that attend to nothing."""
    users = {use.node.op_type: use.node for use in weights.uses()}
    guarded = set(users) == {"IsNaN", "Where"} and users["Where"].inputs[2] is weights
    if guarded and users["Where"].inputs[0] is users["IsNaN"].outputs[0]:
        return users["Where"].outputs[0]
    return weights


def _cache(value: ir.Value | None) -> ir.Node | None:
    """Return ``Concat(past, new)`` on the sequence axis, skipping the repetition of KV heads, or None.

    The repetition must be ``Unsqueeze`` on axis 2, then ``Expand``, so that neighboring heads share a KV head as in the
    operator.
    """
    while (node := producer(value, *_RESHAPING)) is not None:
        axes = constant_array(node.inputs[1]) if node.op_type == "Unsqueeze" else None
        if node.op_type == "Unsqueeze" and (axes is None or axes.tolist() != [2]):
            return None
        value = node.inputs[0]
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or node.attributes.get_int("axis", 0) not in (-2, 2):
        return None
    past, present = node.inputs[0], node.outputs[0]
    return node if past is not None and past.is_graph_input() and present.is_graph_output() else None


def _rewrite(graph: ir.Graph, found: _Attention, seqlens: ir.Value, total: ir.Value) -> None:
    new = tape.Tape()
    q, k, v = (merged_heads(new, value) for value in (found.q, found.k, found.v))
    results = new.op_multi_out(
        "GroupQueryAttention",
        [q, k, v, found.past_k, found.past_v, seqlens, total],
        {"num_heads": found.heads, "kv_num_heads": found.kv_heads, "scale": found.scale}
        | ({"local_window_size": found.window} if found.window else {}),
        num_outputs=3,
        domain="com.microsoft",
    )
    olds = [found.output, found.present_k, found.present_v]
    for old, result in zip(olds, results, strict=True):
        result.type, result.shape = old.type, old.shape
    last = found.output.producer()
    assert last is not None
    ir.convenience.replace_nodes_and_values(graph, last, [last], list(new.nodes), olds, list(results))
