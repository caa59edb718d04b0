"""Which keys of config.json name the feed-forward activation, in each family's own spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ACTIVATION_KEYS", "exported_activation", "named_activation", "put_activation"]

# Where the configs of transformers keep the name of the feed-forward activation.
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act")
_T5_KEY = "feed_forward_proj"  # "relu" or "gated-relu"; T5's config makes dense_act_fn of it
# transformers has neither: its keys say relu, and what was trained takes its place after loading.
_FOREIGN = ("fatrelu", "drelu")


def named_activation(values: Mapping[str, Any]) -> str:
    """Return the activation that config.json's ``values`` name, or ""; a key of ours (hidden_act) is before T5's."""
    named = [values.get(key) for key in ACTIVATION_KEYS]
    if isinstance(values.get(_T5_KEY), str):
        named.append(str(values.get("dense_act_fn") or values[_T5_KEY].rpartition("-")[2]))
    return next((name for name in named if isinstance(name, str)), "")


def put_activation(config: PretrainedConfig, activation: str) -> None:
    """Write ``activation``, or the relu that stands for one of ours, under every key that ``config`` has for it."""
    name = "relu" if activation in _FOREIGN else activation
    for key in ACTIVATION_KEYS:
        if isinstance(getattr(config, key, None), str):
            setattr(config, key, name)
    proj = getattr(config, _T5_KEY, None)
    if isinstance(proj, str):
        setattr(config, _T5_KEY, f"gated-{name}" if proj.startswith("gated-") else name)
        config.dense_act_fn = name


def exported_activation(activation: str, hidden_act_param: float | list[float]) -> dict[str, Any]:
    """Return the keys of ours that tell `load_checkpoint` of an activation that transformers does not know.

    They are hidden_act, which released ProSparse models have and which is read first, and hidden_act_param. A family
    with a key of its own says relu there, so that transformers can make the model.
    """
    if activation not in _FOREIGN:
        return {}
    return {"hidden_act": activation, **({"hidden_act_param": hidden_act_param} if activation == "fatrelu" else {})}
