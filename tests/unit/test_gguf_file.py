"""benchmarks/engines/gguf_file.py: a GGUF file holds what llama.cpp's llama graph needs to compute the checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    from engines import gguf_file
finally:
    sys.path.remove(str(BENCHMARKS))

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 16, 2


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=50,
        max_position_embeddings=32,
        rms_norm_eps=3e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 12345.0},
        tie_word_embeddings=False,
    )
    model = hf.LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change(checkpoint: Path, **fields: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def read(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}, fields


def test_every_tensor_and_hyperparameter_is_written(checkpoint: Path, tmp_path: Path) -> None:
    tensors, fields = read(gguf_file.write_gguf(checkpoint, tmp_path / "m.gguf", "F16"))
    source = {name: tensor.float().numpy() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    assert len(tensors) == len(source) == 9 * LAYERS + 3
    for name, other in {
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
        "output_norm": "model.norm",
        "blk.1.attn_v": "model.layers.1.self_attn.v_proj",
        "blk.1.attn_output": "model.layers.1.self_attn.o_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    }.items():
        np.testing.assert_allclose(tensors[f"{name}.weight"], source[f"{other}.weight"], rtol=2**-11, atol=1e-7)
    assert fields["llama.rope.freq_base"] == 12345
    assert fields["llama.attention.layer_norm_rms_epsilon"] == np.float32(3e-5)
    sizes = {"head_count": HEADS, "head_count_kv": KV_HEADS, "key_length": HEAD_DIM, "value_length": HEAD_DIM}
    assert {name: fields[f"llama.attention.{name}"] for name in sizes} == sizes
    assert (fields["llama.block_count"], fields["llama.feed_forward_length"]) == (LAYERS, 96)
    assert (fields["llama.embedding_length"], fields["llama.vocab_size"], fields["llama.context_length"]) == (
        64,
        50,
        32,
    )


@pytest.mark.parametrize(("name", "heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_rope_of_adjacent_pairs_gives_the_same_products(
    checkpoint: Path, tmp_path: Path, name: str, heads: int
) -> None:
    """llama.cpp rotates adjacent pairs of its rows, transformers the halves of a head."""
    tensors, _ = read(gguf_file.write_gguf(checkpoint, tmp_path / "m.gguf", "F16"))
    half = load_file(checkpoint / "model.safetensors")[f"model.layers.0.self_attn.{name}_proj.weight"].half().float()
    x = torch.randn(64)
    angle = 7 * 12345.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    both = torch.cat([angle, angle])
    theirs = (half @ x).reshape(1, heads, 1, HEAD_DIM)
    expected, _ = apply_rotary_pos_emb(theirs, theirs, both.cos()[None, None], both.sin()[None, None])
    pairs = (torch.from_numpy(tensors[f"blk.0.attn_{name}.weight"]) @ x).reshape(heads, HEAD_DIM // 2, 2)
    even, odd = pairs.unbind(-1)
    rotated = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
    torch.testing.assert_close(torch.cat(rotated, -1), expected[0, :, 0], rtol=1e-4, atol=1e-4)


def test_matrices_are_quantized_and_norms_are_not(checkpoint: Path, tmp_path: Path) -> None:
    path = gguf_file.write_gguf(checkpoint, tmp_path / "m.gguf", "Q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_norm.weight"] == kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 10000.0}, 10000),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1.0}, 5e5),
        ({"rope_parameters": None, "rope_theta": 2.0}, 2),
    ],
)
def test_rope_theta_of_both_versions_of_config_json(config: dict[str, Any], theta: float) -> None:
    assert gguf_file.rope_theta(config) == theta


def test_llama3_factors_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    change(checkpoint, rope_parameters=scaling, head_dim=128)
    factors = gguf_file._llama3_factors(scaling, 500000.0, 128)
    assert factors.min() == 1
    assert factors.max() == 8
    assert ((factors > 1) & (factors < 8)).any()
    config = SimpleNamespace(
        rope_parameters=scaling, head_dim=128, standardize_rope_params=lambda: None, max_position_embeddings=131072
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / factors, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "opt"}, "expected model_type llama, got 'opt'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "expected default, linear or llama3, got 'yarn'",
        ),
    ],
)
def test_another_architecture_is_refused(
    checkpoint: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    change(checkpoint, **fields)
    with pytest.raises(gguf_file.UnsupportedCheckpointError, match=message):
        gguf_file.write_gguf(checkpoint, tmp_path / "m.gguf", "F16")


def test_a_tensor_without_counterpart_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(HEAD_DIM)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(gguf_file.UnsupportedCheckpointError, match=r"no tensor for model.layers.0.self_attn.q_norm"):
        gguf_file.write_gguf(checkpoint, tmp_path / "m.gguf", "F16")
