"""The cost of quantization by part leaves a model in memory as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.families import family

from prosparse_export.export.rounded_reference import StoredAs
from prosparse_export.validation.quantization_ablation import quantization_costs
from prosparse_models import load_checkpoint


def test_a_tied_model_in_memory_is_restored(tmp_path: Path) -> None:
    family("LLaMA (ReluLLaMA)").save(tmp_path)
    checkpoint = load_checkpoint(tmp_path, in_files=False)
    embedding, head = checkpoint.model.get_input_embeddings(), checkpoint.model.get_output_embeddings()
    head.weight = embedding.weight
    before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    stored = StoredAs("i4", is_down=False)
    formats = {name: stored for name in ("model.embed_tokens", "lm_head", "model.layers.0.mlp.up_proj")}
    whole, *parts = quantization_costs(checkpoint, formats, np.arange(3, 35), None)
    assert embedding.weight is head.weight
    assert all(torch.equal(before[name], weight) for name, weight in checkpoint.model.state_dict().items())
    assert {part.module for part in parts} == {"model.embed_tokens and lm_head", "model.layers.0.mlp"}
    assert whole.kl > 0
