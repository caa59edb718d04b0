"""Tiny random models and text for the tests of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA = {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}
WITH_HEAD_DIM = {**LLAMA, "head_dim": 8}
WITHOUT_D_FF = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
# Name: config, attribute of the FFN's activation, whether the FFN is gated.
MODELS: dict[str, tuple[PretrainedConfig, str, bool]] = {
    "llama": (LlamaConfig(**LLAMA), "act_fn", True),
    "mistral": (MistralConfig(**WITH_HEAD_DIM), "act_fn", True),
    "qwen2": (Qwen2Config(**LLAMA), "act_fn", True),
    "gemma": (GemmaConfig(**WITH_HEAD_DIM), "act_fn", True),
    "gemma2": (Gemma2Config(**WITH_HEAD_DIM), "act_fn", True),
    "phi3": (Phi3Config(**LLAMA), "activation_fn", True),
    "gpt_neox": (GPTNeoXConfig(**SIZES), "act", False),
    "opt": (
        OPTConfig(**WITHOUT_D_FF, ffn_dim=32, word_embed_proj_dim=16, activation_function="gelu", dropout=0.5),
        "activation_fn",
        False,
    ),
    "gpt2": (GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_inner=32), "act", False),
    "falcon": (FalconConfig(**WITHOUT_D_FF, ffn_hidden_size=32), "act", False),
    "nemotron": (NemotronConfig(**LLAMA), "act_fn", False),
}


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2)  # larger than transformers' 0.02: activations that differ
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    specials = {"<s>": 0, "</s>": 1, "<pad>": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({**specials, **{c: i + 3 for i, c in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_model_folder(folder: Path, **changes: Any) -> Path:
    build(LlamaConfig(**{**LLAMA, **changes})).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make_text(path: Path, documents: int = 60, first: int = 0) -> Path:
    words = ["the", "sparse", "model", "skips", "what", "is", "zero", "and"]
    words += ["reads", "only", "what", "it", "needs", "of", "the", "weights"]
    rows = [{"text": " ".join(words[(i * j) % len(words)] for j in range(40))} for i in range(first, first + documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cache_of_the_hub(folder: Path, cache: Path, name: str) -> Path:
    """Put ``folder`` into ``cache`` as huggingface_hub does with ORG/NAME; return where its files are."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))
