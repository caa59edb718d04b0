"""Other kinds of model through the whole chain, tiny and random: released formats, biases, plain FFNs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ArceeConfig, ArceeForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from prosparse_export import export_model, load
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
VOCAB = 96
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPARSE = {
    "architectures": ["SparseLlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM"},
    "model_type": "sparsellama",
    "hidden_act": "fatrelu",
    "hidden_act_param": 0.01,
}


def save(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    fields: dict[str, Any] = {}
    if kind == "opt":
        config = OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
            activation_function="relu",
        )
        model = OPTForCausalLM(config)
    elif kind == "relu2":
        model = ArceeForCausalLM(ArceeConfig(**LLAMA, head_dim=8, hidden_act="relu2"))
    else:
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, hidden_act="relu", **LLAMA_KINDS.get(kind, {})))
        fields = SPARSE if kind == "sparsellama" else {}
    for parameter in model.parameters():  # biases too, and all of a size that matters
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


LLAMA_KINDS: dict[str, dict[str, Any]] = {"biases": {"mlp_bias": True}, "odd heads": {"head_dim": 12}}
EXPECTED = {
    "odd heads": ("SparseGatedFFNF32", "relu", 0.0),
    "sparsellama": ("SparseGatedFFNF32", "fatrelu", 0.01),
    "biases": ("SparseGatedFFNF32", "relu", 0.0),
    "relu2": ("SparseFFNF32", "relu2", 0.0),
    "opt": ("SparseFFNF32", "relu", 0.0),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_computes_what_pytorch_does(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "m", kind)
    result = export_model(tmp_path / "m", tmp_path / "out" / "m.onnx")
    op, activation, threshold = EXPECTED[kind]
    assert [(o.op, o.activation) for o in result.rewritten] == [(op, activation)] * 2
    assert result.not_rewritten == ()
    reasons = {line.partition(": ")[2] for line in result.attention_not_fused}
    assert reasons == ({"head_dim is 12: the operator takes multiples of 8"} if kind == "odd heads" else set())
    assert result.rewritten[0].threshold == pytest.approx(threshold, abs=1e-9)
    checkpoint = load_checkpoint(tmp_path / "m")
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 24))
    with torch.no_grad():
        expected = checkpoint.model(input_ids=torch.from_numpy(ids)).logits.numpy()
    for library in (True, False):
        actual, _ = load(result.path, library=library).forward(ids, np.ones_like(ids))
        error, size = np.abs(actual - expected).max(), np.abs(expected).max()
        assert error <= 1e-4 * size, (library, error, size)
        np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
