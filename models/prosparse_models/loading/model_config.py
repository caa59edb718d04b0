"""config.json of a model folder, read as data and translated to what transformers knows.

The released ProSparse checkpoints ship modeling code of their own (``auto_map``), but they are
LLaMA with another activation (facts: their config.json and weight names). They are described
here instead, so that none of that code has to run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prosparse_models.errors import CheckpointError
from prosparse_models.loading.activation_keys import named_activation

__all__ = ["ModelConfig", "read_model_config"]

# Architectures of released sparse checkpoints -> the transformers model type that they are.
_LLAMA_ALIKE = {
    "SparseLlamaForCausalLM": "llama",  # SparseLLM/prosparse-llama-2-7b and -13b
    "MiniCPMForCausalLM": "llama",  # openbmb/MiniCPM-S-1B-sft; its scales are folded on loading
}
_LLAMA_ALIKE_TYPES = {
    "sparsellama": "llama",
    "minicpm": "llama",
    "llama_sparse_relu": "llama",  # SakanaAI's SparseLM
    "bamboo": "mistral",  # PowerInfer's Bamboo and TurboSparse-Mistral
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# Their code has this activation whatever hidden_act says; SparseLM's config.json says silu.
_ACTIVATION_OF_CODE = {"llama_sparse_relu": "relu", "bamboo": "drelu"}

_JSON_NAMES: dict[type, str] = {list: "list", str: "string", dict: "object"}

# Keys that name code or are about the code's own version, not about the model.
_CODE_KEYS = ("auto_map", "_name_or_path", "transformers_version")


@dataclass(frozen=True)
class ModelConfig:
    """What a model folder's config.json says, in transformers' terms.

    Attributes:
        values: the config's fields for transformers, with a model type that it knows and without
            keys that name code. ``hidden_act`` is the checkpoint's own.
        source_type: model type or architecture that the folder states.
        activation: the feed-forward activation that it names, "" if none.
        threshold: FATReLU t (0 for every other activation), in units of the pre-activation; the least
            of them if layers differ.
        thresholds: FATReLU t per layer, if layers differ; else empty.
        is_minicpm: the folder has MiniCPM's embedding, residual and logit scales.
        needs_code: the model type is unknown here and the folder brings code for it.
    """

    values: dict[str, Any]
    source_type: str
    activation: str
    threshold: float
    thresholds: tuple[float, ...]
    is_minicpm: bool
    needs_code: bool


def read_model_config(folder: Path) -> ModelConfig:
    """Read and translate ``folder/config.json``; nothing in the folder is executed.

    Raises:
        CheckpointError: there is no readable config.json, or its activation lacks a threshold.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(
            f"model folder: {folder}: expected a folder, got {'a file' if folder.exists() else 'nothing there'}",
            hint="give the folder that holds config.json and the *.safetensors files",
        )
    if not path.is_file():
        raise CheckpointError(
            f"model folder: {folder}: expected a config.json, got none",
            hint="give the folder that save_pretrained wrote; it holds config.json and *.safetensors",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"config.json: {path}: expected JSON, got {error}", hint="copy the file again from where it came"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"config.json: {path}: expected a JSON object, got {type(values).__name__}",
            hint="copy the file again from where it came",
        )
    for key, kind in (("architectures", list), ("model_type", str), ("auto_map", dict)):
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise CheckpointError(
                f"config.json: {path}: {key}: expected a JSON {_JSON_NAMES[kind]}, got {values[key]!r}",
                hint="copy the file again from where it came",
            )
    if values.get("quantization_config"):
        raise CheckpointError(
            f"config.json: {path}: expected float weights, got a quantized checkpoint (quantization_config)",
            hint="export the original model, with --weights i8 or i4",
        )
    architecture = str(next(iter(values.get("architectures") or []), ""))
    stated = str(values.get("model_type") or architecture)
    known = _LLAMA_ALIKE_TYPES.get(stated) or _LLAMA_ALIKE.get(architecture)
    has_code = "." in json.dumps(values.get("auto_map") or {})  # bare class names are not code
    cleaned = {key: value for key, value in values.items() if key not in _CODE_KEYS}
    if known is not None:
        cleaned["model_type"] = known
        cleaned["architectures"] = [_ARCHITECTURES[known]]
    if stated in _ACTIVATION_OF_CODE:
        cleaned["hidden_act"] = _ACTIVATION_OF_CODE[stated]
    cleaned.setdefault("model_type", stated)
    activation = named_activation(cleaned)
    thresholds = _thresholds(cleaned, activation, path)
    return ModelConfig(
        values=cleaned,
        source_type=stated,
        activation=activation,
        threshold=min(thresholds, default=0.0),
        thresholds=thresholds if len(set(thresholds)) > 1 else (),
        is_minicpm="MiniCPMForCausalLM" in (architecture, stated) or stated == "minicpm",
        needs_code=known is None and has_code,
    )


def _thresholds(values: dict[str, Any], activation: str, path: Path) -> tuple[float, ...]:
    if activation != "fatrelu":
        return ()
    raw = values.get("hidden_act_param")
    thresholds: list[float] = []
    for item in raw if isinstance(raw, list) and raw else [raw]:
        if not isinstance(item, int | float) or isinstance(item, bool) or not 0.0 <= item < math.inf:
            raise CheckpointError(
                f"config.json: {path}: hidden_act is fatrelu: expected hidden_act_param to be its "
                f"threshold, a number >= 0 (or one per layer), got {raw!r}",
                hint='add "hidden_act_param": 0.01 (the released 7B and 13B) or 0.03 (the 1B)',
            )
        thresholds.append(float(item))
    return tuple(thresholds)
