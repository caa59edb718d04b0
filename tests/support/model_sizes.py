"""Sizes of the tiny random models that tests build."""

from __future__ import annotations

from typing import Any

VOCAB = 96
D_MODEL, D_FF, HEADS, LAYERS = 64, 64, 4, 1
LONGEST = 64


def sizes(**more: Any) -> dict[str, Any]:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": D_FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**common, **more}


def grouped(**more: Any) -> dict[str, Any]:
    """Sizes of models with grouped queries."""
    return sizes(num_key_value_heads=2, head_dim=16, **more)


def two_layers(values: dict[str, Any]) -> dict[str, Any]:
    """For models whose layers take turns."""
    return {**values, "num_hidden_layers": 2}


def opt(**more: Any) -> dict[str, Any]:
    return {**sizes(ffn_dim=D_FF, activation_function="relu", word_embed_proj_dim=D_MODEL), **more}


def falcon(**more: Any) -> dict[str, Any]:
    return sizes(ffn_hidden_size=D_FF, activation="relu", **more)


def t5(**more: Any) -> dict[str, Any]:
    """Sizes of a T5, one layer on either side."""
    common = {
        "vocab_size": VOCAB,
        "d_model": D_MODEL,
        "d_ff": D_FF,
        "d_kv": 8,
        "num_heads": HEADS,
        "num_layers": LAYERS,
    }
    return {**common, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, **more}


M2M100 = {
    "vocab_size": VOCAB,
    "d_model": D_MODEL,
    "encoder_ffn_dim": D_FF,
    "decoder_ffn_dim": D_FF,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "activation_function": "relu",
    "max_position_embeddings": LONGEST,
}
GEMMA3N = {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.95, 0.0],
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "sliding_window": 8,
}
