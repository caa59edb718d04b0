"""Load a model folder into a PyTorch model, without running anything from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from prosparse_models.errors import CheckpointError, TrainingError
from prosparse_models.ffns import find_ffns
from prosparse_models.loading.activation_keys import ACTIVATION_KEYS, exported_activation, put_activation
from prosparse_models.loading.activation_override import apply_activation, override_activation
from prosparse_models.loading.calibration_file import read_calibration
from prosparse_models.loading.file_weights import FileWeights
from prosparse_models.loading.gaussian_topk import fix_gaussian_topk
from prosparse_models.loading.minicpm import fold_minicpm_scales
from prosparse_models.loading.model_config import ModelConfig, read_model_config
from prosparse_models.loading.substitution import set_thresholds
from prosparse_models.loading.weight_files import check_weight_files, stored_dtype

__all__ = ["Checkpoint", "load_checkpoint"]

# Tensors of no consequence in older or larger files: buffers, heads of other tasks, predictors, a tied lm_head.
_IGNORED = re.compile(r"inv_freq$|masked_bias$|attn\.bias$|position_ids$|^cls\.|predictor|^lm_head\.weight$")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder.

    Attributes:
        model: the causal LM, or the encoder, in evaluation mode, its FFN activation in place.
        config: config.json for the exported folder: what transformers reads back, with
            ``hidden_act`` and ``hidden_act_param`` as trained.
        activation: ``hidden_act`` as trained, for instance ``relu`` or ``fatrelu``.
        threshold: FATReLU t, 0 where there is none; the least of them if layers differ.
        weight_dtype: the dtype that the weights have on disk, for instance ``bfloat16``.
        files: the weight files that were read.
        overrides: what the caller changed: for ``activation`` and ``threshold``, what config.json says and what is
            used instead.
        weights: where the model's matrices are, if they were left in their files; the model then holds placeholders
            and computes inside ``weights.filled(model)`` only.
        calibration: the search that found the thresholds in use, if the folder has its record; see `read_calibration`.
    """

    model: PreTrainedModel
    config: dict[str, Any]
    activation: str
    threshold: float
    weight_dtype: str
    files: tuple[Path, ...]
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    weights: FileWeights | None = None
    calibration: dict[str, Any] | None = None


def load_checkpoint(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    activation: str | None = None,
    threshold: float | None = None,
    in_files: bool = False,
    encoder_decoder: bool = False,
) -> Checkpoint:
    """Load the causal language model, or the encoder, in ``folder``.

    A folder whose architecture is a bare model (``BertModel``) is loaded as that: it gives hidden states.

    Besides everything that transformers knows, this reads ``sparsellama`` (ProSparse-LLaMA-2),
    MiniCPM-S in both of its formats, and any LLaMA-like model with ``hidden_act: fatrelu``.

    Args:
        folder: a local folder with config.json and weight files.
        dtype: dtype that the weights are cast to.
        trust_remote_code: allow Python code in the folder to run, for model types unknown here.
        activation: relu, relu2, fatrelu or drelu: what the FFNs compute, whatever config.json says.
        threshold: FATReLU t; a model with relu becomes one with fatrelu.
        in_files: leave matrices in their files, where the architecture's weights are stored as it has them, and
            ``dtype`` is float32; see `FileWeights`. Others are loaded as ever.
        encoder_decoder: take an encoder-decoder (T5, M2M-100), and nothing else.

    Raises:
        CheckpointError: config or weights are missing, damaged, incomplete or of an unknown type.
    """
    config, overrides = override_activation(folder, read_model_config(folder), activation, threshold)
    calibration = read_calibration(folder, config.activation, _hidden_act_param(config))
    files = check_weight_files(folder)
    hf_config = _hf_config(folder, config, trust_remote_code, encoder_decoder=encoder_decoder)
    if overrides:
        put_activation(hf_config, config.activation)
    auto = AutoModel if _is_bare(config) else AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    weights = None
    try:
        if in_files and not config.needs_code:
            model, info, weights = _load_in_files(folder, hf_config, files, is_bare=_is_bare(config))
        if weights is None:
            model, info = auto.from_pretrained(
                folder,
                config=hf_config,
                dtype=dtype,
                trust_remote_code=trust_remote_code and config.needs_code,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
    except Exception as error:  # what damaged weights raise has no common base class
        raise CheckpointError(
            f"model folder: {folder}: cannot be loaded: {type(error).__name__}: {_one_line(error)}",
            hint="check that config.json belongs to these weights, and copy the folder again",
        ) from error
    _check_complete(folder, info)
    trained = config.activation or str(getattr(hf_config, "hidden_act", "") or "")
    is_elsewhere = not overrides and config.values.get("hidden_act") != "fatrelu"
    if trained == "fatrelu" and (config.thresholds or is_elsewhere):
        _set_thresholds(model, config, folder, weights)  # per layer, or in a family that names its activation otherwise
    else:
        apply_activation(folder, model, config, trained, is_override=bool(overrides))
    fix_gaussian_topk(model)
    if config.is_minicpm:
        fold_minicpm_scales(model, config.values, weights)
    return Checkpoint(
        model=model.eval(),
        config=_exported_config(model.config, config, trained),
        activation=trained,
        threshold=config.threshold,
        weight_dtype=stored_dtype(files)
        or str(config.values.get("dtype") or config.values.get("torch_dtype") or "float32"),
        files=files,
        overrides=overrides,
        weights=weights,
        calibration=calibration,
    )


def _load_in_files(
    folder: Path, hf_config: PretrainedConfig, files: tuple[Path, ...], *, is_bare: bool
) -> tuple[PreTrainedModel, Mapping[str, Any], FileWeights | None]:
    """Load the model with placeholders for matrices; no weights where the loader merges or splits them."""
    weights = FileWeights(files)
    known = (MODEL_MAPPING if is_bare else MODEL_FOR_CAUSAL_LM_MAPPING)[type(hf_config)]
    classes = known if isinstance(known, (list, tuple)) else [known]
    named = [c for c in classes if c.__name__ in (hf_config.architectures or [])]
    model_class = (named or list(classes))[0]  # as transformers' own auto classes choose
    model, info = model_class.from_pretrained(
        None,
        config=hf_config,
        state_dict=dict(weights.state_dict),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    is_complete = any(info.get(key) for key in ("missing_keys", "mismatched_keys")) or weights.is_complete(model)
    return model, info, weights if is_complete else None


def _hf_config(
    folder: Path, config: ModelConfig, trust_remote_code: bool, *, encoder_decoder: bool
) -> PretrainedConfig:
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
    except Exception as error:  # each config class validates in its own way
        raise CheckpointError(
            f"config.json: {folder / 'config.json'}: {_one_line(error)}", hint="correct the field that it names"
        ) from error
    if encoder_decoder and not _is_bare(config) and type(hf_config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return hf_config
    known = MODEL_MAPPING if _is_bare(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(hf_config) not in known or getattr(hf_config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"config.json: {folder / 'config.json'}: expected a causal language model or a bare encoder, "
            f"got model_type {model_type!r}",
            hint="of encoder-decoders only prosparse-export and prosparse generate take any, those for text such as T5",
        )
    return hf_config


def _is_bare(config: ModelConfig) -> bool:
    architecture = str(next(iter(config.values.get("architectures") or []), ""))
    return architecture.endswith("Model") and not architecture.endswith("LMHeadModel")


def _set_thresholds(model: PreTrainedModel, config: ModelConfig, folder: Path, weights: FileWeights | None) -> None:
    """Put FATReLU in place, with one threshold or one per layer."""
    try:
        with nullcontext() if weights is None else weights.filled(model):  # ffns are found by what they compute
            ffns = find_ffns(model)
        set_thresholds(ffns, config.thresholds or [config.threshold] * len(ffns))
    except (ValueError, TrainingError) as error:
        raise CheckpointError(
            f"model folder: {folder}: fatrelu: {_one_line(error)}", hint="give one threshold, or one per layer"
        ) from error


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
    for name, stored, expected in sorted(info.get("mismatched_keys") or ()):
        raise CheckpointError(
            f"weights: {folder}: {name}: expected shape {list(expected)} as config.json says, got {list(stored)}",
            hint="config.json does not belong to these weights",
        )
    unexpected = sorted(k for k in info.get("unexpected_keys") or () if not _IGNORED.search(k))
    if unexpected:
        raise CheckpointError(
            f"weights: {folder}: expected only what config.json describes, got {len(unexpected)} more: "
            + ", ".join(unexpected[:3])
            + (" ..." if len(unexpected) > 3 else ""),
            hint="config.json lacks something, such as mlp_bias; or it does not belong to these weights",
        )


def _exported_config(hf_config: PretrainedConfig, config: ModelConfig, activation: str) -> dict[str, Any]:
    values: dict[str, Any] = hf_config.to_dict()
    if activation and "hidden_act" in values:
        values["hidden_act"] = activation
    values.update(exported_activation(activation, _hidden_act_param(config)))
    for name in ("auto_map", "_name_or_path"):
        values.pop(name, None)
    return values


def _hidden_act_param(config: ModelConfig) -> float | list[float]:
    return list(config.thresholds) or config.threshold


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
