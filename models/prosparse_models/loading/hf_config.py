"""Make transformers' config of a model folder, or say why the architecture is unsupported."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from prosparse_models.errors import CheckpointError
from prosparse_models.loading.activation_keys import ACTIVATION_KEYS
from prosparse_models.loading.model_config import ModelConfig

__all__ = ["is_bare", "make_hf_config"]


def make_hf_config(
    folder: Path, config: ModelConfig, *, trust_remote_code: bool, encoder_decoder: bool
) -> PretrainedConfig:
    """Return the config that transformers builds the model from.

    Args:
        folder: the model folder.
        config: its config.json, as `read_model_config` returns it.
        trust_remote_code: allow the folder's own config class for model types that transformers does not know.
        encoder_decoder: accept encoder-decoders too.

    Raises:
        CheckpointError: the model type is unknown, or the fields do not fit it.
    """
    path, model_type = folder / "config.json", config.values["model_type"]
    if config.needs_code and model_type not in CONFIG_MAPPING:
        if not trust_remote_code:
            raise CheckpointError(
                f"model folder: {folder}: unknown model_type {config.source_type!r}; the folder contains Python code "
                "for it (auto_map), which was not run",
                hint="review that code, then pass --trust-remote-code to run it",
            )
        return AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json: {path}: unknown model_type {config.source_type!r}: expected a type that transformers "
            "supports, or sparsellama or minicpm",
            hint="check the spelling, or upgrade transformers if the model is newer",
        )
    values = {key: value for key, value in config.values.items() if key != "model_type"}
    for key in ACTIVATION_KEYS:
        if values.get(key) in ("fatrelu", "drelu"):
            values[key] = "relu"  # transformers has neither; the trained activation is put in place after loading
    try:
        hf_config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # config classes have no common error type
        message = " ".join(str(error).split())
        raise CheckpointError(f"config.json: {path}: {message}", hint="correct the field named above") from error
    if encoder_decoder and not is_bare(config) and type(hf_config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return hf_config
    known = MODEL_MAPPING if is_bare(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(hf_config) not in known or getattr(hf_config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"config.json: {path}: expected a causal language model or an encoder, got model_type {model_type!r}",
            hint="text encoder-decoders such as T5 are supported by prosparse-export and prosparse generate only",
        )
    return hf_config


def is_bare(config: ModelConfig) -> bool:
    """Return whether the architecture is a model without a head, such as ``BertModel``."""
    architecture = str(next(iter(config.values.get("architectures") or []), ""))
    return architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
