"""The dense baseline of an artifact: the PyTorch model with the weights as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graph_passes import FORMAT_SPECS, FfnFormat, Format, float_format, format_of, is_quantized, quantize, rounded
from prosparse_export.artifact.manifest import Manifest
from prosparse_models import Checkpoint

__all__ = [
    "INTEGER_STEP",
    "StoredAs",
    "as_stored",
    "checkpoint_format",
    "format_bound",
    "stored_arrays",
    "stored_formats",
    "threshold_crossings",
    "with_stored_weights",
]


def checkpoint_format(dtype: str) -> Format:
    """Return the storage format of a checkpoint's float type; ``dtype`` as in config.json."""
    return float_format(dtype.removeprefix("torch.")) or "f32"


_SIGMAS = 3.0
_HAZARD = 2.5  # fraction of active neurons per relative step of z near t, for normal z at 89% sparsity
INTEGER_STEP = math.sqrt(32) * 2.0**-16  # 2^-16 of the largest of 32 values, relative to their root mean square
_FLOAT_STEP = 2.0**-19  # float32 sum of a thousand terms, in any order: 2^-24 times the square root of a thousand


def format_bound(formats: Mapping[str, StoredAs], largest: float, crossings: float = 0.0) -> float:
    """Return the largest allowed difference of logits from the dense baseline's.

    Float formats: 1e-3, for float32 rounding with any summation order. i8 and i4 also round activations to 16 bits,
    once per matrix. A step is 2^-16 of the largest of 32 values, which is at most sqrt(32) times their root mean
    square; each rounding changes the layer's output, and so the logits, by at most that fraction.

    A discontinuous activation (FATReLU with t > 0) gains or loses a neuron when rounding moves z across t. A changed
    fraction of the active neurons changes the FFN's sum of independent terms by the square root of that fraction;
    FFNs add as independent errors, and the bound is three standard deviations.

    Args:
        formats: from `stored_formats`.
        largest: the largest absolute logit.
        crossings: from `threshold_crossings`.
    """
    roundings = sum(is_quantized(stored.weights) for stored in formats.values())
    return max(1e-3, (roundings * INTEGER_STEP + _SIGMAS * math.sqrt(crossings)) * largest)


def threshold_crossings(manifest: Manifest) -> float:
    """Return the fraction of active neurons whose z may cross a threshold above 0 by rounding, summed over FFNs."""
    step = INTEGER_STEP if is_quantized(_ffn_format(manifest)) else _FLOAT_STEP
    return sum(2 * step * _HAZARD for ffn in manifest.rewritten if ffn.threshold > 0)


class StoredAs(NamedTuple):
    """How an artifact stores a linear layer's weight.

    Attributes:
        weights: the format.
        is_down: whether it is a down_proj, stored transposed.
    """

    weights: Format
    is_down: bool


def _ffn_format(manifest: Manifest) -> FfnFormat:
    return cast("FfnFormat", manifest.weight_format or "f32")


def stored_formats(manifest: Manifest) -> dict[str, StoredAs]:
    """Return how each matrix is stored that is not stored as float32, by module path, as prosparse.json says."""
    formats: dict[str, StoredAs] = {}
    weights = _ffn_format(manifest)
    for ffn in manifest.rewritten:
        for name in ffn.linears:
            is_down = name == ffn.linears[-1]
            formats[name] = StoredAs(format_of(weights, is_down=is_down), is_down)
    if manifest.linears is not None:
        others = StoredAs(cast("Format", manifest.linears.weight_format), is_down=False)
        formats.update(dict.fromkeys(manifest.linears.modules, others))
    return {name: stored for name, stored in formats.items() if stored.weights != "f32"}


def _rounding(model: PreTrainedModel, formats: Mapping[str, StoredAs]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Return a function from a parameter's path and values to its values as stored."""
    in_major = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}

    def change(path: str, weight: torch.Tensor) -> torch.Tensor:
        module = path.removesuffix(".weight")
        stored = formats.get(module) if module != path else None
        return weight if stored is None else _rounded(weight, stored, transposed=module in in_major)

    return change


def as_stored(checkpoint: Checkpoint, formats: Mapping[str, StoredAs]) -> AbstractContextManager[None]:
    """Return a context in which the checkpoint's model computes with the weights as stored.

    Weights in memory are rounded permanently; weights in files are rounded as they are read.

    Args:
        checkpoint: the model.
        formats: from `stored_formats`; empty for the checkpoint's own weights.
    """
    if checkpoint.weights is not None:
        return checkpoint.weights.filled(checkpoint.model, _rounding(checkpoint.model, formats))
    with_stored_weights(checkpoint.model, formats)
    return nullcontext()


@torch.no_grad()
def with_stored_weights(model: PreTrainedModel, formats: Mapping[str, StoredAs]) -> None:
    """Round the matrices of ``model``, in place, as the artifact stores them.

    An artifact then differs from the model by summation order only and, for i8 and i4, by rounding of activations to
    16 bits.

    Args:
        model: the PyTorch model, any float dtype.
        formats: from `stored_formats`.
    """
    change = _rounding(model, formats)
    sharing: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            sharing.setdefault(id(weight), []).append(name)
    done: set[int] = set()
    for name in formats:
        layer = model.get_submodule(name)
        others = sharing[id(layer.weight)]
        if id(layer.weight) in done:  # tied, and stored once
            continue
        if len({formats.get(other) for other in others}) > 1:  # tied here, but the artifact rounds one of them alone
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        done.add(id(layer.weight))
        layer.weight.copy_(change(f"{name}.weight", layer.weight))


def _rounded(weight: torch.Tensor, stored: StoredAs, *, transposed: bool) -> torch.Tensor:
    spec = FORMAT_SPECS[stored.weights]
    if not spec.group:
        return weight.to(getattr(torch, spec.dtype.name)).to(weight.dtype)
    turn = stored.is_down != transposed
    matrix = weight.T if turn else weight
    result = torch.from_numpy(rounded(matrix.detach().float().numpy(), stored.weights))
    return (result.T if turn else result).to(weight.dtype)


def stored_arrays(weight: torch.Tensor, weights: FfnFormat, *, is_down: bool) -> list[NDArray[np.generic]]:
    """Return what an artifact stores for a matrix: weights and, for integer formats, scales.

    Args:
        weight: as PyTorch has it, ``[out, in]``.
        weights: the format of the matrix or of its FFN.
        is_down: whether it is a down_proj, stored transposed.
    """
    matrix = (weight.T if is_down else weight).float().numpy()
    own = format_of(weights, is_down=is_down)
    if is_quantized(own):
        return list(quantize(matrix, own))
    return [matrix.astype(FORMAT_SPECS[own].dtype)]
