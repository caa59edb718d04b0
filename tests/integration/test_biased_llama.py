"""A LLaMA with biases, two layers, d_ff unequal to d_model and heads that cannot be fused, through the whole chain.

The families (test_families.py) have one layer, d_ff equal to d_model and no biases in gated FFNs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from graph_passes import Format
from prosparse_export import ExportOptions, export_model, load
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.export.rounded_reference import format_bound, stored_formats, with_stored_weights
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
VOCAB = 96


def biased_llama(folder: Path) -> None:
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
    model.save_pretrained(folder)


def test_computes_what_pytorch_does(tmp_path: Path) -> None:
    biased_llama(tmp_path / "m")
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


@pytest.mark.parametrize("weights", ["i8", "i4"])
def test_biases_of_outputs_that_are_divided_by_powers(weights: Format, tmp_path: Path) -> None:
    biased_llama(tmp_path / "m")
    checkpoint = load_checkpoint(tmp_path / "m")
    with torch.no_grad():
        for layer in checkpoint.model.model.layers:
            layer.mlp.down_proj.weight[::5] *= 16
            layer.mlp.down_proj.weight[1::5] /= 16
    checkpoint.model.save_pretrained(tmp_path / "m")
    result = export_model(tmp_path / "m", tmp_path / "out" / "m.onnx", ExportOptions(weights=weights))
    checkpoint = load_checkpoint(tmp_path / "m")
    formats = stored_formats(require_manifest(result.path), result.path)
    with_stored_weights(checkpoint.model, formats)
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 24))
    with torch.no_grad():
        expected = checkpoint.model(input_ids=torch.from_numpy(ids)).logits.numpy()
    size = float(np.abs(expected).max())
    for library in (True, False):
        actual, _ = load(result.path, library=library).forward(ids, np.ones_like(ids))
        bound = format_bound(formats, size) if library else 1e-4 * size
        assert np.abs(actual - expected).max() <= bound, library
