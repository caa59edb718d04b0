"""A LLaMA with biases, two layers, d_ff unequal to d_model and heads that cannot be fused, through the whole chain.

The families (test_families.py) have one layer, d_ff equal to d_model and no biases in gated FFNs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_export import export_model, load
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
VOCAB = 96


def test_computes_what_pytorch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=64,
        hidden_act="relu",
        mlp_bias=True,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # biases too, all large enough to matter
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "m")
    result = export_model(tmp_path / "m", tmp_path / "out" / "m.onnx")
    assert [(o.op, o.activation, o.threshold) for o in result.rewritten] == [("SparseGatedFFNF32", "relu", 0.0)] * 2
    assert result.not_rewritten == ()
    reasons = {line.partition(": ")[2] for line in result.attention_not_fused}
    assert reasons == {"head_dim is 12; expected a multiple of 8"}
    checkpoint = load_checkpoint(tmp_path / "m")
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 24))
    with torch.no_grad():
        expected = checkpoint.model(input_ids=torch.from_numpy(ids)).logits.numpy()
    for library in (True, False):
        actual, _ = load(result.path, library=library).forward(ids, np.ones_like(ids))
        error, size = np.abs(actual - expected).max(), np.abs(expected).max()
        assert error <= 1e-4 * size, (library, error, size)
        np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
