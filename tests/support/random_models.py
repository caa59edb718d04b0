"""Small transformers with random weights and the demo's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["SIZES", "save_with_tokenizer"]

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_with_tokenizer(model: PreTrainedModel, folder: Path, demo_folder: Path) -> None:
    """Fill ``model`` with weights large enough for logits to differ, and save it with the demo's tokenizer."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    for file in demo_folder.glob("token*"):
        shutil.copy(file, folder)
