"""Store the KV cache of GroupQueryAttention in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape

from graph_passes.custom_ops import DOMAIN

__all__ = ["CACHE_LEVELS", "QuantizeKvCachePass", "rotated_dims"]

CACHE_LEVELS = 127
"""A value x is stored as round(x / scale), between -128 and 127; a scale is the largest value / 127."""

_PAST, _PRESENT, _SCALES = (3, 4), (1, 2), (12, 13)  # key, value: inputs and outputs of the operator
_COS = 7


class QuantizeKvCachePass(ir.passes.InPlacePass):
    """Turn the float32 KV cache of every ``GroupQueryAttention`` into an int8 cache.

    Attention rounds new keys (after RoPE) and values as it appends them, and reads the cache in 8 bits, for prompts and
    decode alike. Queries, scores and outputs stay float32. onnxruntime runs it from version 1.27 on.

    Args:
        scales: by name of the cache input (``past_key_values.N.key``): one scale per channel ``[kv_heads, head_dim]``,
            or one for the tensor ``[1]``.
    """

    def __init__(self, scales: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self._scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        new = tape.Tape(model.graph)
        count = 0
        for node in list(model.graph):
            if _is_attention(node) and "k_quant_type" not in node.attributes:
                self._quantize(node, new)
                count += 1
        return ir.passes.PassResult(model, modified=count > 0)

    def _quantize(self, node: ir.Node, new: tape.Tape) -> None:
        node.resize_inputs(max(len(node.inputs), _SCALES[1] + 1))
        for past, present, place, attribute in zip(
            _PAST, _PRESENT, _SCALES, ("k_quant_type", "v_quant_type"), strict=True
        ):
            cache = node.inputs[past]
            assert cache is not None
            scale = self._scales[str(cache.name)]
            per_channel = scale.ndim == 2
            values = scale.reshape(1, scale.shape[0], 1, -1) if per_channel else scale
            tensor = ir.tensor(values.astype(np.float32), name=f"{cache.name}.scale")
            node.replace_input_with(place, new.initializer(tensor))
            node.attributes[attribute] = ir.AttrString(attribute, "PER_CHANNEL" if per_channel else "PER_TENSOR")
            for value in (cache, node.outputs[present]):  # new objects: copies of layers share theirs
                value.type = ir.TensorType(ir.DataType.INT8)
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)


def rotated_dims(graph: ir.Graph) -> dict[str, int]:
    """Return how many elements of each head RoPE rotates, by name of the key cache; 0 without RoPE."""
    result = {}
    for node in graph:
        if _is_attention(node):
            cache = node.inputs[_PAST[0]]
            assert cache is not None
            assert cache.shape is not None
            result[str(cache.name)] = _rotated(node, int(cache.shape[3]))  # type: ignore[arg-type]  # static
    return result


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "GroupQueryAttention" and node.domain == "com.microsoft"


def _rotated(node: ir.Node, head_dim: int) -> int:
    if node.attributes.get_int("do_rotary", 0):
        cos = node.inputs[_COS]
        return 2 * int(cos.shape[1]) if cos is not None and cos.shape is not None else head_dim  # type: ignore[arg-type]
    value, width = node.inputs[1], head_dim
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "RotaryEmbedding":
            return producer.attributes.get_int("rotary_embedding_dim", 0) or width
        if producer.op_type == "Reshape":  # to [batch, tokens, heads, width] after RoPE on part of a head
            shape = ir.convenience.get_const_tensor(producer.inputs[1])  # type: ignore[arg-type]  # not optional
            if shape is not None and shape.size == 4 and shape.numpy()[-1] > 0:
                width = int(shape.numpy()[-1])
        if producer.op_type == "MatMul" or producer.domain == DOMAIN:  # the projection
            return 0
        value = producer.inputs[0]
    return 0
