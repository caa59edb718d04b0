"""llama.cpp: write a LLaMA checkpoint as GGUF and run it. Its graph uses SiLU: the same cost, other tokens."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

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


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows in llama.cpp's order: it applies RoPE to adjacent pairs, transformers to the halves of a head."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def rope_theta(config: dict[str, Any]) -> float:
    """Return the base of RoPE's frequencies; transformers 5 writes it under rope_parameters, 4 at the top."""
    return float((config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"])


def write_gguf(checkpoint: Path, path: Path, kind: str) -> Path:
    """Write the LLaMA checkpoint ``checkpoint`` with its matrices in ``kind``, through a temporary file."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>".encode() for i in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([1] * config["vocab_size"])
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                values = tensors.get_tensor(name).float().numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):
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


class LlamaCpp:
    """A GGUF file in llama.cpp, through its C interface; logits of the last token only.

    ``cache_8_bits``: KV cache in q8_0, which needs flash attention, instead of float16.
    """

    def __init__(
        self, path: Path, threads: int, context: int, *, repacked: bool = True, cache_8_bits: bool = False
    ) -> None:
        import llama_cpp

        self._c = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = repacked
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 512, 512
        if cache_8_bits:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_Q8_0
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise OSError(f"llama.cpp cannot open {path}")

    def _run(self, ids: np.ndarray) -> None:
        array = (self._c.llama_token * len(ids))(*ids.tolist())
        if self._c.llama_decode(self._context, self._c.llama_batch_get_one(array, len(ids))):
            raise OSError("llama_decode failed")

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Clear the KV cache, then run a prompt."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        for begin in range(0, len(ids), 512):
            self._run(ids[begin : begin + 512])
        self._c.llama_get_logits_ith(self._context, -1)[0]

    def decode(self, ids: np.ndarray) -> None:
        """Decode the tokens one by one."""
        for token in ids:
            self._run(np.array([token]))
            self._c.llama_get_logits_ith(self._context, -1)[0]
