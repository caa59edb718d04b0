"""Scales that cover keys and values, at any position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from prosparse_export.export.kv_cache_scales import find_cache_scales
from prosparse_export.progress import no_progress
from prosparse_models import cache_of, load_checkpoint

NAMES = {"past_key_values.0.key": 16, "past_key_values.1.key": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = hf.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        hidden_act="relu",
    )
    hf.LlamaForCausalLM(config).save_pretrained(path)
    return path


def largest(folder: Path, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """The largest key of each channel and layer, ``[kv_heads, head_dim]``."""
    with torch.no_grad():
        cache = cache_of(load_checkpoint(folder).model(input_ids=ids, use_cache=True))
    return {name: layer.keys.abs().amax((0, 2)).numpy() for name, layer in zip(NAMES, cache.layers, strict=True)}


def test_without_a_tokenizer_one_scale_per_tensor_covers_random_tokens(folder: Path) -> None:
    found = find_cache_scales(load_checkpoint(folder), folder, [], NAMES, no_progress)
    assert (found.record.scale_per, found.record.texts, found.record.layers) == ("tensor", {}, 2)
    assert found.record.tokens % 512 == 0
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (1, 512)))
    for name, keys in largest(folder, ids).items():
        assert found.values[name].shape == (1,)
        assert 127 * found.values[name] >= keys.max() * (1 - 1e-6)


def test_scales_per_channel_cover_every_angle_of_a_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) % 96 for letter in text]}

    monkeypatch.setattr("prosparse_export.export.kv_cache_scales.load_tokenizer", lambda _: Tokenizer())
    text = "".join(chr(32 + i % 90) for i in np.random.default_rng(1).integers(0, 90, 64))
    found = find_cache_scales(load_checkpoint(folder), folder, [("a", text)], NAMES, no_progress)
    assert found.record.scale_per == "channel"
    assert list(found.record.texts) == ["a"]
    far = torch.tensor([[ord(text[0]) % 96] * 448 + [ord(letter) % 96 for letter in text]])  # at other positions
    for name, scale in found.values.items():
        assert scale.shape == (2, 16)
        if name.endswith(".key"):
            np.testing.assert_array_equal(scale[:, :8], scale[:, 8:])
    first = next(iter(NAMES))  # of the first layer, keys depend on the token and its position alone
    assert (127 * found.values[first] >= largest(folder, far)[first] * (1 - 1e-5)).all()
