"""The KV cache argument and output of models: transformers 5.24 renamed both from past_key_values to cache."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import Cache
from transformers.utils import ModelOutput

__all__ = ["cache_argument", "cache_of"]


def cache_argument(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """Return ``cache`` as the keyword argument that ``model`` expects."""
    parameters = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


def cache_of(output: ModelOutput) -> Any:
    """Return the KV cache in a model's output; None without one."""
    return output.get("cache", output.get("past_key_values"))
