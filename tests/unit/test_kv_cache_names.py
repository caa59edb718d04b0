"""What models call their KV cache, before transformers 5.24 and since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.utils import ModelOutput

from prosparse_models import cache_argument, cache_of


class Before(torch.nn.Module):
    def forward(self, past_key_values: Any = None, **kwargs: Any) -> None: ...


class Since(torch.nn.Module):
    def forward(self, cache: Any = None, **kwargs: Any) -> None: ...


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor | None = None
    cache: DynamicCache | None = None


@pytest.mark.parametrize(("model", "name"), [(Before(), "past_key_values"), (Since(), "cache")])
def test_the_argument_has_the_model_s_own_name(model: torch.nn.Module, name: str) -> None:
    cache = DynamicCache()
    assert cache_argument(model, cache) == {name: cache}


def test_the_cache_of_an_output_by_either_name() -> None:
    cache = DynamicCache()
    assert cache_of(Output(cache=cache)) is cache
    assert cache_of({"past_key_values": cache}) is cache  # type: ignore[arg-type]
    assert cache_of(Output(logits=torch.zeros(1))) is None
