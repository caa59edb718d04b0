"""Finding FFNs by structure, in many architectures."""

from __future__ import annotations

import pytest
import torch
from support.training_models import LLAMA, MODELS, build
from transformers import MixtralConfig

from prosparse_models import TrainingError, find_ffns


@pytest.mark.parametrize("name", MODELS)
def test_finds_ffns_by_structure(name: str) -> None:
    config, attribute, gated = MODELS[name]
    model = build(config)
    ffns = find_ffns(model)
    assert len(ffns) == 2
    for ffn in ffns:
        assert (ffn.activation_name, ffn.gate is not None, ffn.d_ff) == (attribute, gated, 32)
        x = torch.randn(3, 16)
        seen: list[torch.Tensor] = []
        handle = ffn.down.register_forward_hook(lambda _, a, y, seen=seen: seen.append(y))
        y = ffn.compute(x)
        handle.remove()
        assert torch.equal(seen[0], y)
        if hasattr(ffn.parent, "down_proj"):  # the parent's own forward is the reference
            torch.testing.assert_close(ffn.parent(x), y, rtol=0, atol=0)
    assert not model.training


def test_rejects_models_without_ffns() -> None:
    model = build(MixtralConfig(**LLAMA, num_local_experts=2))
    with pytest.raises(TrainingError, match="no FFNs") as caught:
        find_ffns(model)
    assert caught.value.hint
