"""Choose the FFN activation: config.json's, or the caller's in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from prosparse_models.activation import FatReLU, set_drelu, set_ffn_activation
from prosparse_models.errors import CheckpointError
from prosparse_models.loading.activation_keys import ACTIVATION_KEYS
from prosparse_models.loading.model_config import ModelConfig

__all__ = ["ACTIVATIONS", "apply_activation", "override_activation"]

ACTIVATIONS = ("relu", "relu2", "fatrelu", "drelu")
"""Valid values of ``activation``."""


def override_activation(
    folder: Path, config: ModelConfig, activation: str | None, threshold: float | None
) -> tuple[ModelConfig, Mapping[str, Mapping[str, object]]]:
    """Return ``config`` with the caller's activation and threshold, and a record of the changes.

    The new config's values name no activation: `put_activation` writes it under the family's own key.

    Raises:
        CheckpointError: an unknown activation, a threshold out of range, or a threshold without fatrelu.
    """
    if activation is None and threshold is None:
        return config, {}
    stated = config.activation
    used = activation or ("fatrelu" if stated == "relu" else stated)
    if used not in ACTIVATIONS:
        raise CheckpointError(
            f"activation: {folder}: expected one of {', '.join(ACTIVATIONS)}, got {used!r}",
            hint="a threshold alone works with relu and fatrelu models only; pass --activation too",
        )
    if threshold is not None and used != "fatrelu":
        raise CheckpointError(
            f"threshold: {folder}: expected fatrelu, got {used!r}", hint="omit the threshold, or pass fatrelu"
        )
    if threshold is not None and not 0.0 <= threshold < math.inf:
        raise CheckpointError(
            f"threshold: {folder}: expected a finite number >= 0, got {threshold:g}",
            hint="published models use 0.01 or 0.03",
        )
    if threshold is None and used == "fatrelu" and stated != "fatrelu":
        raise CheckpointError(
            f"threshold: {folder}: fatrelu needs a threshold", hint="published models use 0.01 or 0.03"
        )
    changed = {k: v for k, v in config.values.items() if k not in (*ACTIVATION_KEYS, "hidden_act_param")}
    overrides: dict[str, Mapping[str, object]] = {"activation": {"config": stated, "used": used}}
    new_threshold = 0.0
    if used == "fatrelu":
        new_threshold = config.threshold if threshold is None else float(threshold)
        overrides["threshold"] = {"config": config.threshold, "used": new_threshold}
    return replace(config, values=changed, activation=used, threshold=new_threshold, thresholds=()), overrides


def apply_activation(
    folder: Path, model: PreTrainedModel, config: ModelConfig, activation: str, *, is_override: bool
) -> None:
    """Put ``activation`` into every FFN of ``model`` unless transformers has done so already.

    Raises:
        CheckpointError: no FFN of the model supports it.
    """
    if activation not in ("fatrelu", "drelu") and not is_override:
        return
    if activation == "drelu":
        ffns = set_drelu(model)
    else:
        module: nn.Module = FatReLU(config.threshold) if activation == "fatrelu" else ACT2FN[activation]
        ffns = set_ffn_activation(model, module)
    if ffns == 0:
        raise CheckpointError(
            f"model folder: {folder}: activation {activation}: no FFN of {type(model).__name__} supports it",
            hint="drelu needs separate gate_proj, up_proj and down_proj; use relu or fatrelu"
            if activation == "drelu"
            else "omit the activation and the threshold, or correct hidden_act in config.json",
        )
