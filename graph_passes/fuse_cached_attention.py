"""Replace GroupQueryAttention by our operators: over a KV cache in float32, or in 8 bits with a scale per token."""

from __future__ import annotations

import json

import onnx_ir as ir
from onnx_ir import tape

from graph_passes import custom_ops, function_bodies
from graph_passes.cached_rows import WINDOWS, cache_row_bytes
from graph_passes.custom_ops import CacheFormat

__all__ = ["FuseCachedAttentionPass"]

_LENGTHS, _TOTAL, _COS, _SIN = 5, 6, 7, 8  # inputs of GroupQueryAttention
_KNOWN = frozenset({"num_heads", "kv_num_heads", "scale", "local_window_size", "do_rotary"})


class FuseCachedAttentionPass(ir.passes.InPlacePass):
    """Turn every ``GroupQueryAttention`` into ``CachedAttention``, or ``RotaryCachedAttention`` if it applies RoPE.

    Separate q, k and v are concatenated. The function bodies of the operators are added to the model. In 8 bits, cache
    inputs and outputs become int8, with ``cache_row_bytes(head_dim)`` elements per key or value, and the model's
    metadata say which cache inputs may be as short as a sliding window. In float32, attention with attributes or inputs
    that our operators lack stays as it is; in 8 bits, it raises ValueError.

    Args:
        cache: format of the KV cache.
    """

    def __init__(self, cache: CacheFormat) -> None:
        super().__init__()
        self._cache = cache

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        found = [n for n in model.graph if n.op_type == "GroupQueryAttention" and n.domain == "com.microsoft"]
        if self._cache == "F32":
            found = [node for node in found if not _unknown(node) and _has_float_cache(node)]
            windows = {}
        else:
            windows = {name: window for node in found for name, window in _windows(node).items()}
        for node in found:
            _rewrite(model, node, self._cache)
        if windows:
            model.metadata_props[WINDOWS] = json.dumps(windows)
        if found:
            model.opset_imports[custom_ops.DOMAIN] = custom_ops.VERSION
        return ir.passes.PassResult(model, modified=bool(found))


def _windows(node: ir.Node) -> dict[str, int]:
    """Return the sliding window by name of the cache inputs."""
    window = max(node.attributes.get_int("local_window_size", 0), 0)
    return {str(value.name): window for value in node.inputs[3:5] if window and value is not None}


def _unknown(node: ir.Node) -> set[str]:
    """Return the attributes, and the places of inputs, that our operators lack."""
    places = {f"input {i}" for i, value in enumerate(node.inputs) if i > _SIN and value is not None}
    return set(node.attributes) - _KNOWN | places


def _has_float_cache(node: ir.Node) -> bool:
    return all(value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs[3:5])


def _rewrite(model: ir.Model, node: ir.Node, cache: CacheFormat) -> None:
    if unknown := _unknown(node):
        raise ValueError(f"{node.name}: cannot replace GroupQueryAttention with {', '.join(sorted(unknown))}")
    past_k, past_v = node.inputs[3], node.inputs[4]
    assert past_k is not None
    assert past_v is not None
    assert past_k.shape is not None
    head_dim = int(past_k.shape[3])  # type: ignore[arg-type]  # static
    new = tape.Tape()
    qkv = node.inputs[0]
    if node.inputs[1] is not None:
        qkv = new.op("Concat", node.inputs[:3], {"axis": -1})
    rotary = bool(node.attributes.get_int("do_rotary", 0))
    name = custom_ops.cached_attention(cache, rotary=rotary)
    window = max(node.attributes.get_int("local_window_size", 0), 0)
    results = new.op_multi_out(
        name,
        [qkv, past_k, past_v, *node.inputs[_LENGTHS : _TOTAL + 1], *(node.inputs[_COS : _SIN + 1] if rotary else [])],
        {
            "num_heads": node.attributes.get_int("num_heads", 0),
            "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
            "scale": node.attributes.get_float("scale", 0.0) or head_dim**-0.5,  # the operator takes 0 as its default
            "local_window_size": window or (-1 if cache == "F32" else 0),
        },
        num_outputs=3,
        domain=custom_ops.DOMAIN,
        name=node.name,
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], list(new.nodes), list(node.outputs), list(results)
    )
    for value in (past_k, past_v, *results[1:]) if cache == "I8" else ():  # new objects: copies of layers share theirs
        value.type = ir.TensorType(ir.DataType.INT8)
        assert value.shape is not None
        value.shape = ir.Shape([*value.shape[:3], cache_row_bytes(head_dim)])
    body = function_bodies.function(name, model.opset_imports.get("", custom_ops.OPSET))
    model.functions[body.identifier()] = body
