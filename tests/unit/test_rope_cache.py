"""RoPE caches that a model's own frequencies give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prosparse_export.validation.rope_cache import expected_caches

FREQUENCIES = torch.tensor([1.0, 0.1, 0.01])


class Rotary(nn.Module):
    def __init__(self, name: str, factor: float, scaling: float | None) -> None:
        super().__init__()
        self.register_buffer(f"{name}inv_freq", FREQUENCIES * factor)
        self.register_buffer(f"{name}original_inv_freq", FREQUENCIES * 99)
        if scaling is not None:
            setattr(self, f"{name}attention_scaling", scaling)


def model(*rotary: Rotary) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(2), *rotary)  # with other buffers


@pytest.mark.parametrize(("function", "exact"), [("cos", np.cos), ("sin", np.sin)])
@pytest.mark.parametrize("prefix", ["", "sliding_attention_"])
def test_values(function: str, exact: np.ufunc, prefix: str) -> None:
    two = model(Rotary(prefix, 1.0, None), Rotary(prefix, 0.5, 1.5))
    caches = expected_caches(two, f"prosparse.rotary_{function}.0", 100)
    assert len(caches) == 2
    for cache, factor, scale in zip(caches, (1.0, 0.5), (1.0, 1.5), strict=True):
        angles = np.arange(100)[:, None] * (FREQUENCIES * factor).numpy().astype(np.float64)
        assert cache.shape == (100, 3)
        # Rounded to float32: the angle, its cosine or sine, and that times the scale: 2^-24 of 99, 1, and scale.
        bound = scale * (np.abs(angles) + 4) * 2.0**-24
        assert (np.abs(cache - scale * exact(angles)) <= bound).all()


@pytest.mark.parametrize("name", ["w", "prosparse.rotary_tan.0", "prosparse.rotary_cos.x", "a.prosparse.rotary_cos.0"])
def test_other_initializers(name: str) -> None:
    assert expected_caches(model(Rotary("", 1.0, None)), name, 4) == []


def test_a_model_without_rotary_embeddings() -> None:
    assert expected_caches(model(), "prosparse.rotary_cos.0", 4) == []
