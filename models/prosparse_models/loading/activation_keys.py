"""The keys of config.json that name the FFN activation, in each family's spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ACTIVATION_KEYS", "exported_activation", "named_activation", "put_activation"]

# The keys of the FFN activation in the configs of transformers.
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act")
_T5_KEY = "feed_forward_proj"  # "relu" or "gated-relu"; T5's config makes dense_act_fn of it
# Unknown to transformers: its keys say relu, and the trained activation is put in place after loading.
_OURS = ("fatrelu", "drelu")


def named_activation(values: Mapping[str, Any]) -> str:
    """Return the activation in config.json's ``values``, or ""; `ACTIVATION_KEYS` take precedence over T5's key."""
    named = [values.get(key) for key in ACTIVATION_KEYS]
    if isinstance(values.get(_T5_KEY), str):
        named.append(str(values.get("dense_act_fn") or values[_T5_KEY].rpartition("-")[2]))
    return next((name for name in named if isinstance(name, str)), "")


def put_activation(config: PretrainedConfig, activation: str) -> None:
    """Write ``activation`` (relu for fatrelu and drelu) under every activation key that ``config`` has."""
    name = "relu" if activation in _OURS else activation
    for key in ACTIVATION_KEYS:
        if isinstance(getattr(config, key, None), str):
            setattr(config, key, name)
    proj = getattr(config, _T5_KEY, None)
    if isinstance(proj, str):
        setattr(config, _T5_KEY, f"gated-{name}" if proj.startswith("gated-") else name)
        config.dense_act_fn = name


def exported_activation(activation: str, hidden_act_param: float | list[float]) -> dict[str, Any]:
    """Return the fields by which `load_checkpoint` recognizes an activation unknown to transformers.

    These are hidden_act, as in released ProSparse models, and hidden_act_param. The family's own key says relu, so that
    transformers can build the model.
    """
    if activation not in _OURS:
        return {}
    return {"hidden_act": activation, **({"hidden_act_param": hidden_act_param} if activation == "fatrelu" else {})}
