"""Load a model folder into a PyTorch model, without running anything from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from prosparse_models.activation import FatReLU, set_ffn_activation
from prosparse_models.errors import CheckpointError, TrainingError
from prosparse_models.ffn_blocks import find_ffn_blocks
from prosparse_models.minicpm import fold_minicpm_scales
from prosparse_models.model_config import ACTIVATION_KEYS, ModelConfig, read_model_config
from prosparse_models.substitution import set_thresholds, substitute_activation
from prosparse_models.weight_files import check_weight_files

__all__ = ["Checkpoint", "load_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder.

    Attributes:
        model: the causal LM in evaluation mode, its FFN activation in place.
        config: config.json for the exported folder: what transformers reads back, with
            ``hidden_act`` and ``hidden_act_param`` as trained.
        activation: ``hidden_act`` as trained, for instance ``relu`` or ``fatrelu``.
        threshold: FATReLU t, 0 where there is none; the least of them if layers differ.
        weight_dtype: the dtype that the weights have on disk, for instance ``bfloat16``.
        files: the weight files that were read.
    """

    model: PreTrainedModel
    config: dict[str, Any]
    activation: str
    threshold: float
    weight_dtype: str
    files: tuple[Path, ...]


def load_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Checkpoint:
    """Load the causal language model in ``folder``.

    Besides everything that transformers knows, this reads ``sparsellama`` (ProSparse-LLaMA-2),
    MiniCPM-S in both of its formats, and any LLaMA-like model with ``hidden_act: fatrelu``.

    Args:
        folder: a local folder with config.json and weight files.
        dtype: dtype that the weights are cast to.
        trust_remote_code: allow Python code in the folder to run, for model types unknown here.

    Raises:
        CheckpointError: config or weights are missing, damaged, incomplete or of an unknown type.
    """
    config = read_model_config(folder)
    files = check_weight_files(folder)
    hf_config = _hf_config(folder, config, trust_remote_code)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            trust_remote_code=trust_remote_code and config.needs_code,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"model folder: {folder}: {_one_line(error)}") from error
    _check_complete(folder, info)
    activation = config.activation or str(getattr(hf_config, "hidden_act", "") or "")
    if config.thresholds or activation == "drelu" or (activation == "fatrelu" and "hidden_act" not in config.values):
        _set_trained_activation(model, config, folder)
    elif activation == "fatrelu":
        blocks = set_ffn_activation(model, FatReLU(config.threshold))
        if blocks == 0:
            raise CheckpointError(
                f"model folder: {folder}: hidden_act is fatrelu: expected gated FFN blocks "
                f"(gate_proj, up_proj, down_proj), got none in {type(model).__name__}"
            )
    if config.is_minicpm:
        fold_minicpm_scales(model, config.values)
    return Checkpoint(
        model=model.eval(),
        config=_exported_config(model.config, config, activation),
        activation=activation,
        threshold=config.threshold,
        weight_dtype=str(config.values.get("dtype") or config.values.get("torch_dtype") or "float32"),
        files=files,
    )


def _hf_config(folder: Path, config: ModelConfig, trust_remote_code: bool) -> PretrainedConfig:
    model_type = config.values["model_type"]
    if config.needs_code and model_type not in CONFIG_MAPPING:
        if not trust_remote_code:
            raise CheckpointError(
                f"model folder: {folder}: model_type {config.source_type!r} is unknown and the folder "
                "brings Python code for it (auto_map), which was not run",
                hint="read that code, then pass --trust-remote-code to let it run",
            )
        return AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json: {folder / 'config.json'}: unknown model_type {config.source_type!r}: expected one "
            "that transformers knows, or a released sparse one (sparsellama, minicpm)",
            hint="check the spelling, or upgrade transformers if the model is newer than it",
        )
    values = {key: value for key, value in config.values.items() if key != "model_type"}
    for key in ACTIVATION_KEYS:
        if values.get(key) in ("fatrelu", "drelu"):
            values[key] = "relu"  # transformers has neither; what was trained takes its place after loading
    try:
        hf_config = AutoConfig.for_model(model_type, **values)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"config.json: {folder / 'config.json'}: {_one_line(error)}") from error
    if type(hf_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"config.json: {folder / 'config.json'}: expected a causal language model, got model_type {model_type!r}"
        )
    return hf_config


def _set_trained_activation(model: PreTrainedModel, config: ModelConfig, folder: Path) -> None:
    """Put an activation in place that `set_ffn_activation` cannot: dReLU, or FATReLU per layer."""
    try:
        blocks = find_ffn_blocks(model)
        if config.activation == "drelu":
            substitute_activation(model, blocks, "drelu")
        else:
            set_thresholds(blocks, config.thresholds or [config.threshold] * len(blocks))
    except ValueError as error:
        hint = error.hint if isinstance(error, TrainingError) else "give one threshold, or one per layer"
        raise CheckpointError(f"model folder: {folder}: {config.activation}: {_one_line(error)}", hint=hint) from error


def _check_complete(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights do not fill the model: transformers would draw random ones."""
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise CheckpointError(
            f"weights: {folder}: expected a tensor for every parameter, got none for {len(missing)}: "
            + ", ".join(missing[:3])
            + (" ..." if len(missing) > 3 else ""),
            hint="copy all shards; or config.json does not belong to these weights",
        )
    mismatched = sorted(str(item) for item in info.get("mismatched_keys") or ())
    if mismatched:
        raise CheckpointError(f"weights: {folder}: shape differs from config.json: {mismatched[0]}")


def _exported_config(hf_config: PretrainedConfig, config: ModelConfig, activation: str) -> dict[str, Any]:
    values: dict[str, Any] = hf_config.to_dict()
    if activation in ("fatrelu", "drelu"):
        values.update({key: activation for key in ACTIVATION_KEYS if isinstance(values.get(key), str)})
    elif activation and "hidden_act" in values:
        values["hidden_act"] = activation
    if activation == "fatrelu":
        values["hidden_act_param"] = list(config.thresholds) or config.threshold
    for name in ("auto_map", "_name_or_path"):
        values.pop(name, None)
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
