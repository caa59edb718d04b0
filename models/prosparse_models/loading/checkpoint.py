"""Load a model folder into a PyTorch model, without running code from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from prosparse_models.errors import CheckpointError, TrainingError
from prosparse_models.ffns import find_ffns
from prosparse_models.loading.activation_keys import exported_activation, put_activation
from prosparse_models.loading.activation_override import apply_activation, override_activation
from prosparse_models.loading.calibration_file import read_calibration
from prosparse_models.loading.file_weights import FileWeights, check_finite
from prosparse_models.loading.gaussian_topk import fix_gaussian_topk
from prosparse_models.loading.hf_config import is_bare, make_hf_config
from prosparse_models.loading.minicpm import fold_minicpm_scales
from prosparse_models.loading.model_config import ModelConfig, read_model_config
from prosparse_models.loading.substitution import set_thresholds
from prosparse_models.loading.weight_files import check_complete, check_weight_files, stored_dtype

__all__ = ["Checkpoint", "load_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder.

    Attributes:
        model: the causal LM, encoder or encoder-decoder in evaluation mode, with its FFN activation in place.
        config: config.json for the exported folder: what transformers reads back, with ``hidden_act`` and
            ``hidden_act_param`` as trained.
        activation: ``hidden_act`` as trained, for example ``relu`` or ``fatrelu``.
        threshold: FATReLU t, 0 for other activations; the smallest if layers differ.
        weight_dtype: dtype of the weights on disk, for example ``bfloat16``.
        files: the weight files.
        overrides: what the caller changed: for ``activation`` and ``threshold``, the value in config.json (``config``)
            and the value in use (``used``).
        weights: locations of the matrices, if they were left in their files; the model then holds placeholders and
            computes inside ``weights.filled(model)`` only.
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

    An architecture without a head (``BertModel``) gives hidden states. Besides transformers' architectures, this loads
    ``sparsellama`` (ProSparse-LLaMA-2), both formats of MiniCPM-S, and LLaMA-like models with ``hidden_act: fatrelu``.

    Args:
        folder: a local folder with config.json and weight files.
        dtype: dtype that the weights are cast to.
        trust_remote_code: allow Python code in the folder to run, for model types unknown to transformers.
        activation: relu, relu2, fatrelu or drelu: use this FFN activation instead of config.json's.
        threshold: FATReLU t; turns relu into fatrelu.
        in_files: leave matrices in their files where the architecture stores them unmerged and ``dtype`` is float32;
            see `FileWeights`. Other models are loaded in full.
        encoder_decoder: accept encoder-decoders (T5, M2M-100).

    Raises:
        CheckpointError: config or weights are missing, damaged, incomplete or of an unknown type.
    """
    config, overrides = override_activation(folder, read_model_config(folder), activation, threshold)
    calibration = read_calibration(folder, config.activation, _hidden_act_param(config))
    files = check_weight_files(folder)
    trust = trust_remote_code and config.needs_code
    hf_config = make_hf_config(folder, config, trust_remote_code=trust, encoder_decoder=encoder_decoder)
    if overrides:
        put_activation(hf_config, config.activation)
    model, weights = None, None
    if in_files and not config.needs_code:
        model, weights = _load_in_files(folder, config, hf_config, files)
    if model is None:
        model = _load_in_full(folder, config, hf_config, dtype, trust=trust, encoder_decoder=encoder_decoder)
    trained = config.activation or str(getattr(hf_config, "hidden_act", "") or "")
    if trained == "fatrelu" and (config.thresholds or _names_it_elsewhere(config, overrides)):
        _set_thresholds(model, config, folder, weights)
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


def _load_in_full(
    folder: Path,
    config: ModelConfig,
    hf_config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    trust: bool,
    encoder_decoder: bool,
) -> PreTrainedModel:
    auto = AutoModel if is_bare(config) else AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            trust_remote_code=trust,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported by `check_complete`, with names
        )
    except Exception as error:  # damaged weights raise errors without a common type
        raise _not_loaded(folder, error) from error
    check_complete(folder, info)
    for name, parameter in model.named_parameters():
        check_finite(name, parameter)
    loaded: PreTrainedModel = model
    return loaded


def _load_in_files(
    folder: Path, config: ModelConfig, hf_config: PretrainedConfig, files: tuple[Path, ...]
) -> tuple[PreTrainedModel | None, FileWeights | None]:
    """Load the model with placeholders for its matrices; None where the loader merges or splits them."""
    try:
        weights = FileWeights(files)
        known = (MODEL_MAPPING if is_bare(config) else MODEL_FOR_CAUSAL_LM_MAPPING)[type(hf_config)]
        classes = known if isinstance(known, (list, tuple)) else [known]
        named = [c for c in classes if c.__name__ in (hf_config.architectures or [])]
        model_class = (named or list(classes))[0]  # as transformers' auto classes choose
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
    except CheckpointError:
        raise
    except Exception as error:  # damaged weights raise errors without a common type
        raise _not_loaded(folder, error) from error
    is_incomplete = any(info.get(key) for key in ("missing_keys", "mismatched_keys"))
    if not is_incomplete and not weights.is_complete(model):
        return None, None
    check_complete(folder, info)
    return model, weights


def _not_loaded(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"model folder: {folder}: cannot be loaded: {type(error).__name__}: {_one_line(error)}",
        hint="check that config.json belongs to these weights, and copy the folder again",
    )


def _names_it_elsewhere(config: ModelConfig, overrides: Mapping[str, object]) -> bool:
    """Return whether fatrelu is under a key other than hidden_act, as in T5."""
    return not overrides and config.values.get("hidden_act") != "fatrelu"


def _set_thresholds(model: PreTrainedModel, config: ModelConfig, folder: Path, weights: FileWeights | None) -> None:
    """Put FATReLU in place, with one threshold or one per layer."""
    try:
        with nullcontext() if weights is None else weights.filled(model):  # find_ffns runs the model
            ffns = find_ffns(model)
        set_thresholds(ffns, config.thresholds or [config.threshold] * len(ffns))
    except (ValueError, TrainingError) as error:
        raise CheckpointError(
            f"model folder: {folder}: fatrelu: {_one_line(error)}", hint="pass one threshold, or one per layer"
        ) from error


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
