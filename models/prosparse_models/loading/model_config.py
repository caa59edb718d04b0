"""Read a model folder's config.json and translate it for transformers.

The released ProSparse checkpoints ship their own modeling code (``auto_map``), but by their config.json and weight
names they are LLaMA with another activation. They are mapped to LLaMA here, so that code never needs to run.
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

# Architectures of released sparse checkpoints -> their model type in transformers.
_LLAMA_ALIKE = {
    "SparseLlamaForCausalLM": "llama",  # SparseLLM/prosparse-llama-2-7b and -13b
    "MiniCPMForCausalLM": "llama",  # openbmb/MiniCPM-S-1B-sft; its scales are folded into the weights
}
_LLAMA_ALIKE_TYPES = {
    "sparsellama": "llama",
    "minicpm": "llama",
    "llama_sparse_relu": "llama",  # SakanaAI's SparseLM
    "bamboo": "mistral",  # PowerInfer's Bamboo and TurboSparse-Mistral
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# Their code hardcodes the activation; SparseLM's config.json says silu.
_ACTIVATION_OF_CODE = {"llama_sparse_relu": "relu", "bamboo": "drelu"}

_JSON_NAMES: dict[type, str] = {list: "list", str: "string", dict: "object"}

# Keys about code and its version, not about the model.
_CODE_KEYS = ("auto_map", "_name_or_path", "transformers_version")


@dataclass(frozen=True)
class ModelConfig:
    """A model folder's config.json, in transformers' terms.

    Attributes:
        values: the fields for transformers, with a supported model type and without references to code.
            ``hidden_act`` is the checkpoint's.
        source_type: the folder's own model type, or architecture.
        activation: the FFN activation, "" if not stated.
        threshold: FATReLU t in units of the pre-activation, 0 for other activations; the smallest if layers differ.
        thresholds: FATReLU t per layer if layers differ, else empty.
        is_minicpm: the folder has MiniCPM's embedding, residual and logit scales.
        needs_code: the model type is unknown and the folder contains code for it.
    """

    values: dict[str, Any]
    source_type: str
    activation: str
    threshold: float
    thresholds: tuple[float, ...]
    is_minicpm: bool
    needs_code: bool


def read_model_config(folder: Path) -> ModelConfig:
    """Read and translate ``folder/config.json`` without running anything from the folder.

    Raises:
        CheckpointError: config.json is missing, malformed or quantized, or its activation lacks a threshold.
    """
    path = folder / "config.json"
    values = _read_values(folder, path)
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


def _read_values(folder: Path, path: Path) -> dict[str, Any]:
    """Return config.json's fields; those that are read here have the right types."""
    if not folder.is_dir():
        problem = "expected a folder, got a file" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"model folder: {folder}: {problem}",
            hint="pass the folder that contains config.json and the *.safetensors files",
        )
    if not path.is_file():
        raise CheckpointError(
            f"model folder: {folder}: no config.json found",
            hint="pass a folder written by save_pretrained; it contains config.json and *.safetensors",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"config.json: {path}: expected JSON, got {error}", hint="copy the file from its source again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"config.json: {path}: expected a JSON object, got {type(values).__name__}",
            hint="copy the file from its source again",
        )
    for key, kind in (("architectures", list), ("model_type", str), ("auto_map", dict)):
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise CheckpointError(
                f"config.json: {path}: {key}: expected a JSON {_JSON_NAMES[kind]}, got {values[key]!r}",
                hint="copy the file from its source again",
            )
    if values.get("quantization_config"):
        raise CheckpointError(
            f"config.json: {path}: expected float weights, got a quantized checkpoint (quantization_config)",
            hint="export the original model, with --weights i8 or i4",
        )
    return values


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
