"""Replace the FFN activation, in the model and in its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from prosparse_models.activation import FatReLU, set_up_relu
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn
from prosparse_models.loading.activation_keys import ACTIVATION_KEYS

__all__ = ["ACTIVATIONS", "saved_fields", "set_thresholds", "substitute_activation"]

# keep: leave the activation as it is, for a dense baseline.
ACTIVATIONS = ("relu", "relu2", "fatrelu", "drelu", "keep")


def substitute_activation(model: PreTrainedModel, ffns: Sequence[Ffn], activation: str, threshold: float = 0.0) -> None:
    """Replace the activation of every FFN; weights stay as they are.

    Args:
        model: its config is changed too, so that transformers can load what ``save_pretrained`` writes: ``relu`` for
            fatrelu and drelu, which `saved_fields` records.
        ffns: from `find_ffns`.
        activation: ``relu``: max(z, 0). ``relu2``: its square. ``fatrelu``: z where z > threshold.
            ``drelu``: relu(gate) * relu(up), gated FFNs only. ``keep``: no change.
        threshold: FATReLU t, >= 0, in units of the pre-activation; 0 unless fatrelu.

    Raises:
        TrainingError: an FFN does not support this activation, or the config has no field for it.

    Source:
        Song et al., "ProSparse", section 3.2, step 1; dReLU: "TurboSparse", arXiv:2406.05955.
    """
    if activation == "keep":
        return
    if activation == "drelu":
        for ffn in ffns:
            if ffn.gate is None or ffn.is_merged:
                kind = "no gate" if ffn.gate is None else "gate and up in one matrix"
                raise TrainingError(
                    f"{ffn.name}: drelu: expected separate gate and up projections, got {kind}",
                    hint="use --set activation=relu",
                )
    keys = [key for key in ACTIVATION_KEYS if isinstance(getattr(model.config, key, None), str)]
    if not keys:
        raise TrainingError(
            f"model: {type(model.config).__name__}: no config field for the activation ({', '.join(ACTIVATION_KEYS)}), "
            "so the changed model could not be saved",
            hint="this architecture hardcodes its activation; use an architecture with a configurable activation",
        )
    for key in keys:
        setattr(model.config, key, "relu2" if activation == "relu2" else "relu")
    for ffn in ffns:
        set_up_relu(ffn.up, activation == "drelu")
        new = FatReLU(threshold) if activation == "fatrelu" else ACT2FN["relu2" if activation == "relu2" else "relu"]
        setattr(ffn.parent, ffn.activation_name, new)


def set_thresholds(ffns: Sequence[Ffn], thresholds: Sequence[float]) -> None:
    """Give each FFN a FATReLU with its own threshold, in order.

    Raises:
        ValueError: the numbers of thresholds and FFNs differ, or a threshold is negative or not finite.
    """
    for ffn, threshold in zip(ffns, thresholds, strict=True):
        setattr(ffn.parent, ffn.activation_name, FatReLU(threshold))


def saved_fields(
    config: Any, activation: str, thresholds: Sequence[float], source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields that config.json needs for `load_checkpoint`, besides transformers' own.

    fatrelu gets ``hidden_act_param``: a number, or a list with one per layer if layers differ. keep copies the fatrelu
    or drelu fields of ``source``, the config.json that the model was loaded from.
    """
    if activation == "keep" and source is not None:
        names = [key for key in ACTIVATION_KEYS if source.get(key) in ("fatrelu", "drelu")]
        return {key: source[key] for key in (*names, "hidden_act_param") if names and key in source}
    if activation not in ("fatrelu", "drelu"):
        return {}
    fields: dict[str, Any] = {key: activation for key in ACTIVATION_KEYS if isinstance(getattr(config, key, None), str)}
    if activation == "fatrelu":
        fields["hidden_act_param"] = thresholds[0] if len(set(thresholds)) == 1 else list(thresholds)
    return fields
