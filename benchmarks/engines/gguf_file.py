"""Write a LLaMA checkpoint as GGUF: what llama.cpp's llama graph reads, or a reason why it would not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

__all__ = ["KINDS", "UnsupportedCheckpointError", "rope_theta", "write_gguf"]

KINDS = {
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "F16": gguf.GGMLQuantizationType.F16,
}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_HALVES = ("q_proj", "k_proj")  # RoPE applies to them


class UnsupportedCheckpointError(ValueError):
    """llama.cpp's llama graph would compute something else than the checkpoint."""


def rope_theta(config: dict[str, Any]) -> float:
    """Return the base of RoPE's frequencies; transformers 5 writes it under rope_parameters, 4 at the top."""
    return float((config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"])


def write_gguf(checkpoint: Path, path: Path, kind: str) -> Path:
    """Write the LLaMA checkpoint ``checkpoint`` with its matrices in ``kind``, through a temporary file.

    Raises:
        UnsupportedCheckpointError: the architecture, RoPE scaling or a tensor has no counterpart.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    if config.get("model_type") not in ("llama", "sparsellama"):
        raise UnsupportedCheckpointError(f"expected model_type llama, got {config.get('model_type')!r}")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta(config))
    _add_rope_scaling(writer, config, head_dim)
    _add_vocabulary(writer, config["vocab_size"])
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                values = tensors.get_tensor(name).float().numpy()
                if any(part in name for part in _HALVES):
                    values = _interleaved(values, heads if "q_proj" in name else kv_heads)
                if values.ndim == 1:
                    writer.add_tensor(_name(name), values)
                else:
                    wanted = KINDS[kind]
                    writer.add_tensor(_name(name), gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in _TOP and suffix == "weight":
        return f"{_TOP[stem]}.weight"
    parts = stem.split(".", 3)
    if len(parts) < 4 or parts[3] not in _NAMES or suffix not in ("weight", "bias"):
        raise UnsupportedCheckpointError(f"llama.cpp's llama graph has no tensor for {name}")
    return f"blk.{parts[2]}.{_NAMES[parts[3]]}.{suffix}"


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in llama.cpp's order: it applies RoPE to adjacent pairs, transformers to the halves of a head."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _add_rope_scaling(writer: gguf.GGUFWriter, config: dict[str, Any], head_dim: int) -> None:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(scaling, rope_theta(config), head_dim))
    elif kind != "default":
        raise UnsupportedCheckpointError(f"RoPE scaling: expected default, linear or llama3, got {kind!r}")


def _llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Return what llama.cpp divides each frequency by, ``[head_dim / 2]``: Llama 3.1's rule by wavelength."""
    low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (old / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths > old / low, factor, np.where(wavelengths < old / high, 1.0, between))
    return factors.astype(np.float32)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add token names that stand for nothing: the benchmarks pass token ids."""
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>".encode() for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([1] * size)
