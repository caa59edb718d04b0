"""genai_config.json, which tells onnxruntime-genai how to run the artifact's folder.

Source: the file that onnxruntime-genai 0.18's model builder writes (models/builders/base.py, make_genai_config).
``session_options.custom_ops_library`` names a library in the same folder, which genai registers.
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
    """Return the contents of the file, or None if genai cannot run the graph: no KV cache, or one that varies by layer.

    Args:
        graph: the artifact's graph.
        file_name: its file name.
        config: config.json.
        generation: generation_config.json.
        library: file name of the operator library next to the graph, or None.
        in_place: past and present may share one buffer (every attention is fused).
    """
    text = {**config, **(config.get("text_config") or {})}
    context, heads, cache = context_in(config), text.get("num_attention_heads"), _cache(graph)
    if cache is None or context is None or not isinstance(heads, int):
        return None
    layers, kv_heads, head_size = cache
    decoder = {
        "session_options": {
            "log_id": "onnxruntime-genai",
            **({} if library is None else {"custom_ops_library": library}),
            "provider_options": [],
        },
        "filename": file_name,
        "head_size": head_size,
        "hidden_size": text.get("hidden_size"),
        **_names(graph),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
    }
    return {
        "model": {
            **_special_tokens(text, generation),
            "context_length": context,
            "decoder": decoder,
            "type": "decoder",  # genai's generic type, without assumptions about the architecture
            "vocab_size": text.get("vocab_size"),
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": context,
            "past_present_share_buffer": in_place,
            **{key: generation[key] for key in ("temperature", "top_k", "top_p") if generation.get(key) is not None},
        },
    }


def _names(graph: ir.Graph) -> dict[str, dict[str, str]]:
    present = {value.name for value in graph.inputs}
    names: dict[str, str] = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in present}
    cache = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    outputs = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    return {"inputs": {**names, **cache}, "outputs": {"logits": "logits", **outputs}}


def _special_tokens(text: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return bos, eos and pad tokens; without a padding token, the first end token pads."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    tokens = {name: generation.get(name, text.get(name)) for name in names}
    end = tokens["eos_token_id"]
    if tokens["pad_token_id"] is None:
        tokens["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {name: token for name, token in tokens.items() if token is not None}


def _cache(graph: ir.Graph) -> tuple[int, int, int] | None:
    """Return layers, KV heads and head_dim of the cache, or None if there is none or its layers differ."""
    inputs = {value.name: value for value in graph.inputs}
    layers = 0
    while _KEY.format(layers) in inputs and _VALUE.format(layers) in inputs:
        layers += 1
    shapes = {_cache_shape(inputs[name.format(i)]) for i in range(layers) for name in (_KEY, _VALUE)}
    shape = next(iter(shapes), None)
    return None if len(shapes) != 1 or shape is None else (layers, *shape)


def _cache_shape(value: ir.Value) -> tuple[int, int] | None:
    """Return KV heads and head_dim of ``[batch, kv_heads, past, head_dim]``, or None if they are not static."""
    if value.shape is None or value.shape.rank() != 4:
        return None
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None
