"""The dense baseline of an artifact: the PyTorch model with the weights as stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graph_passes import (
    FORMAT_SPECS,
    FfnFormat,
    Format,
    dequantize,
    divided,
    float_format,
    format_of,
    is_quantized,
    plausible_integers,
    plausible_scales,
    quantize,
    rounded,
)
from graph_passes.custom_ops import accuracy_level, format_in
from prosparse_export.analysis.stored_scales import StoredScales, stored_scales
from prosparse_export.artifact.accuracy_level import LEVEL_4_ERROR
from prosparse_export.artifact.manifest import Manifest
from prosparse_export.export.lazy_initializers import float_array
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_models import Checkpoint
from prosparse_models.loading.file_weights import Change

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


def format_bound(formats: Mapping[str, StoredAs], largest: float, crossings: float = 0.0, level: int = 0) -> float:
    """Return the largest allowed difference of logits from the dense baseline's.

    Float formats: 1e-3, for float32 rounding with any summation order. Integer formats also round activations to 16
    bits, once per matrix. A step is 2^-16 of the largest of 32 values, which is at most sqrt(32) times their root mean
    square; each rounding changes the layer's output, and so the logits, by at most that fraction.

    A discontinuous activation (FATReLU with t > 0) gains or loses a neuron when rounding moves z across t. A changed
    fraction of the active neurons changes the FFN's sum of independent terms by the square root of that fraction;
    FFNs add as independent errors, and the bound is three standard deviations.

    At accuracy level 4, activations are rounded to 8 bits and weights to bfloat16: uniform errors, as large as those
    limits allow. Those of different matrices are independent and add by squares, also to three standard deviations.

    Args:
        formats: from `stored_formats`.
        largest: the largest absolute logit.
        crossings: from `threshold_crossings`.
        level: the artifact's accuracy level.
    """
    roundings = sum(is_quantized(stored.weights) for stored in formats.values())
    lossy = roundings * LEVEL_4_ERROR**2 if level == 4 else 0.0
    return max(1e-3, (roundings * INTEGER_STEP + _SIGMAS * math.sqrt(crossings + lossy)) * largest)


def threshold_crossings(manifest: Manifest) -> float:
    """Return the fraction of active neurons whose z may cross a threshold above 0 by rounding, summed over FFNs."""
    steps = [
        (INTEGER_STEP if accuracy_level(ffn.op) == 0 else LEVEL_4_ERROR)
        if is_quantized(format_in(ffn.op))
        else _FLOAT_STEP
        for ffn in manifest.rewritten
        if ffn.threshold > 0
    ]
    return sum(2 * step * _HAZARD for step in steps)


class StoredAs(NamedTuple):
    """How an artifact stores a linear layer's weight.

    Attributes:
        weights: the format.
        is_down: whether it is a down_proj, stored transposed.
        scales: where the artifact stores its scales; None for float formats, tied matrices, and to choose them anew.
        compensated: its integers are not the nearest ones; they are read from the artifact.
    """

    weights: Format
    is_down: bool
    scales: StoredScales | None = None
    compensated: bool = False


def stored_formats(manifest: Manifest, path: Path) -> dict[str, StoredAs]:
    """Return how each matrix is stored that is not stored as float32, by module path.

    Formats are those in prosparse.json; scales are read from the artifact ``path``.
    """
    scales = stored_scales(path)
    compensated = set(manifest.rounding.compensated) if manifest.rounding is not None else set()
    formats: dict[str, StoredAs] = {}
    for ffn in manifest.rewritten:
        weights = format_in(ffn.op)
        for name in ffn.linears:
            is_down = name == ffn.linears[-1]
            formats[name] = StoredAs(format_of(weights, is_down=is_down), is_down, scales.get(name))
    if manifest.linears is not None:
        for name in manifest.linears.modules:
            own = cast("Format", manifest.linears.format_of(name))
            formats[name] = StoredAs(own, is_down=False, scales=scales.get(name))
    return {
        name: stored._replace(compensated=name in compensated and stored.scales is not None)
        for name, stored in formats.items()
        if stored.weights != "f32"
    }


def _with_tied_scales(model: PreTrainedModel, formats: Mapping[str, StoredAs]) -> dict[str, StoredAs]:
    """Return ``formats`` with the scales of matrices that are stored under the name of a module they are tied to."""
    by_weight = {model.get_submodule(name).weight: stored.scales for name, stored in formats.items() if stored.scales}
    return {
        name: stored._replace(scales=stored.scales or by_weight.get(model.get_submodule(name).weight))
        for name, stored in formats.items()
    }


def _rounding(model: PreTrainedModel, formats: Mapping[str, StoredAs]) -> Change:
    """Return a function from a parameter's path and values to its values as stored; see `FileWeights.filled`."""
    in_major = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    formats = _with_tied_scales(model, formats)

    def change(path: str, weight: torch.Tensor, memory: Callable[[torch.Size], torch.Tensor]) -> torch.Tensor:
        module = path.removesuffix(".weight")
        stored = formats.get(module) if module != path else None
        if stored is None:
            return weight
        transposed = stored.is_down != (module in in_major)
        rows = weight.shape[1 if transposed else 0]
        part = slice(0, 0) if stored.scales is None else _part(model, stored.scales, rows)
        scales = None if stored.scales is None else stored.scales.read()[part]
        powers = stored.scales.read_powers() if stored.is_down and stored.scales is not None else None
        if stored.compensated and stored.scales is not None and scales is not None:
            integers = stored.scales.read_integers()[part]
            own = torch.from_numpy(dequantize(integers, scales, weight.numel() // rows, stored.weights))
            if powers is not None:
                own *= torch.from_numpy(powers)
            return (own.T if transposed else own).to(weight.dtype)
        return _rounded(weight, stored.weights, scales, powers, memory, transposed=transposed)

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

    An artifact then differs from the model by summation order only and, for integer formats, by rounding of activations
    to 16 bits.

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
        kinds = {None if (tied := formats.get(other)) is None else tied[:2] for other in others}
        if len(kinds) > 1:  # tied here, but the artifact rounds one of them alone
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        done.add(id(layer.weight))
        layer.weight.copy_(change(f"{name}.weight", layer.weight, torch.empty))


def _part(model: PreTrainedModel, scales: StoredScales, rows: int) -> slice:
    """Return which ``rows`` of ``scales`` belong to one of the modules packed into a matrix."""
    first = sum(_rows(model.get_submodule(name)) for name in scales.before)
    return slice(first, first + rows)


def _rows(module: torch.nn.Module) -> int:
    return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])  # type: ignore[index]


def _rounded(
    weight: torch.Tensor,
    weights: Format,
    scales: NDArray[np.float16] | None,
    powers: NDArray[np.float32] | None,
    memory: Callable[[torch.Size], torch.Tensor],
    *,
    transposed: bool,
) -> torch.Tensor:
    """Return a float32 copy of ``weight`` as it is stored; of an integer format, in ``memory``."""
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        return weight.to(getattr(torch, spec.dtype.name)).float()
    matrix = float_array((weight.T if transposed else weight).detach())
    result = memory(weight.shape)
    values = (result.T if transposed else result).numpy()
    rounded(matrix if powers is None else divided(matrix, powers), weights, scales, library_rounding(), values)
    if powers is not None:
        values *= powers
    return result


def stored_arrays(
    weight: torch.Tensor,
    weights: FfnFormat,
    *,
    is_down: bool,
    scales: NDArray[np.generic] | None = None,
    integers: NDArray[np.generic] | None = None,
    powers: NDArray[np.float32] | None = None,
) -> list[NDArray[np.generic]]:
    """Return what an artifact stores for a matrix: weights and, for integer formats, scales.

    Args:
        weight: as PyTorch has it, ``[out, in]``.
        weights: the format of the matrix or of its FFN.
        is_down: whether it is a down_proj, stored transposed.
        scales: those in the artifact, ``[rows, groups]``: they depend on the text that an export measured. If no
            search can have chosen them, others are returned.
        integers: those in the artifact, if their rounding was compensated: these are returned if they are close
            enough to the weights.
        powers: what a down_proj is divided by, ``[d_model]``.
    """
    matrix = (weight.T if is_down else weight).float().numpy()
    if powers is not None:
        matrix = divided(matrix, powers)
    own = format_of(weights, is_down=is_down)
    if is_quantized(own):
        known = cast("NDArray[np.float16] | None", scales)
        given = cast("NDArray[np.uint8] | None", integers)
        library = library_rounding()
        if given is not None and known is not None and plausible_integers(matrix, given, known, own, library):
            return [given, known]
        if known is not None and not plausible_scales(matrix, own, known):
            known = None
        return list(quantize(matrix, own, scales=known, rounding=library))
    return [matrix.astype(FORMAT_SPECS[own].dtype)]
