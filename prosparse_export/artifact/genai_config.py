"""genai_config.json: what onnxruntime-genai has to know to generate from the artifact's folder.

Source: the file that onnxruntime-genai's own model builder writes (models/builders/base.py, make_genai_config), read
with version 0.18. ``session_options.custom_ops_library`` names a library in the same folder, which genai registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from prosparse_export.artifact.model_settings import context_in

__all__ = ["GENAI_CONFIG", "genai_config"]

GENAI_CONFIG = "genai_config.json"
_KEY, _VALUE = "past_key_values.{}.key", "past_key_values.{}.value"


def genai_config(
    graph: ir.Graph,
    file_name: str,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    library: str | None,
    in_place: bool,
) -> dict[str, Any] | None:
    """Return the file's contents, or None for a graph that genai cannot drive: no cache, or layers that differ in it.

    Args:
        graph: the artifact's.
        file_name: of the graph.
        config: config.json.
        generation: generation_config.json.
        library: file name of the operator library beside the graph, or None.
        in_place: past and present may be one buffer (all attentions are GroupQueryAttention).
    """
    inputs = {value.name: value for value in graph.inputs}
    layers = 0
    while _KEY.format(layers) in inputs and _VALUE.format(layers) in inputs:
        layers += 1
    shapes = {_cache_shape(inputs[kind.format(i)]) for i in range(layers) for kind in (_KEY, _VALUE)}
    text = {**config, **(config.get("text_config") or {})}
    context, heads = context_in(config), text.get("num_attention_heads")
    shape = next(iter(shapes), None)
    if len(shapes) != 1 or shape is None or context is None or not isinstance(heads, int):
        return None
    kv_heads, head_size = shape
    end = generation.get("eos_token_id", text.get("eos_token_id"))
    first_end = end[0] if isinstance(end, list) else end
    pad = generation.get("pad_token_id", text.get("pad_token_id"))
    tokens = {
        "bos_token_id": generation.get("bos_token_id", text.get("bos_token_id")),
        "eos_token_id": end,
        "pad_token_id": first_end if pad is None else pad,
    }
    names = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    return {
        "model": {
            **{name: token for name, token in tokens.items() if token is not None},
            "context_length": context,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    **({} if library is None else {"custom_ops_library": library}),
                    "provider_options": [],
                },
                "filename": file_name,
                "head_size": head_size,
                "hidden_size": text.get("hidden_size"),
                "inputs": {
                    **names,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": heads,
                "num_hidden_layers": layers,
                "num_key_value_heads": kv_heads,
            },
            "type": "decoder",  # genai's name for any decoder: it then assumes nothing else
            "vocab_size": text.get("vocab_size"),
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": context,
            "past_present_share_buffer": in_place,
            **{key: generation[key] for key in ("temperature", "top_k", "top_p") if generation.get(key) is not None},
        },
    }


def _cache_shape(value: ir.Value) -> tuple[int, int] | None:
    """Return KV heads and head_dim of ``[batch, kv_heads, past, head_dim]``, or None if they are no numbers."""
    if value.shape is None or value.shape.rank() != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None
