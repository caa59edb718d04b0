"""The reference for an artifact whose weights are stored in fewer bits: the model with exactly those weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from graph_passes import Format, dequantise, quantise

__all__ = ["checkpoint_format", "format_bound", "stored_arrays", "with_stored_weights"]

_CHECKPOINT: dict[str, Format] = {"float16": "f16", "bfloat16": "bf16"}


def checkpoint_format(dtype: str) -> Format:
    """Return the format that holds a checkpoint's weights as they are; ``dtype`` as in config.json."""
    return _CHECKPOINT.get(dtype.removeprefix("torch."), "f32")


def format_bound(weights: str, blocks: int, largest: float) -> float:
    """Return how far logits may be from those of the dense model of the same stored weights.

    Float formats: 1e-3, float32 rounding with room for any order of sums. i8 and i4 also round activations to 16
    bits, three times a block (x for gate_proj and up_proj, h for down_proj). A step is 2^-16 of the largest of 32
    numbers, which is at most sqrt(32) times their root mean square; each rounding moves what the block adds by
    that share at most, and the logits by that share of their size.

    Args:
        weights: the artifact's format.
        blocks: feed-forward blocks that were rewritten.
        largest: the largest absolute logit.
    """
    if weights not in ("i8", "i4"):
        return 1e-3
    return max(1e-3, 3 * blocks * math.sqrt(32) * 2.0**-16 * largest)


@torch.no_grad()
def with_stored_weights(model: PreTrainedModel, linears: Iterable[Sequence[str]], weights: Format) -> None:
    """Round the matrices of the rewritten blocks of ``model``, in place, to what the artifact stores.

    So an artifact is compared with the dense model of its own numbers, and differs from it by summation
    order only (and, for i8 and i4, by activations of 16 bits). What the rounding itself costs is another question.

    Args:
        model: the PyTorch model, any float dtype.
        linears: for each rewritten block the module paths of its linear layers, down_proj last.
        weights: the artifact's format.
    """
    if weights == "f32":
        return
    for names in linears:
        for name in names:
            layer = model.get_submodule(name)
            layer.weight.copy_(_rounded(layer.weight, weights, is_down=name == names[-1]))


def _rounded(weight: torch.Tensor, weights: Format, *, is_down: bool) -> torch.Tensor:
    if weights in ("f16", "bf16"):
        return weight.to(torch.float16 if weights == "f16" else torch.bfloat16).to(weight.dtype)
    matrix = weight.T if is_down else weight
    rounded = dequantise(*quantise(matrix.float().numpy(), weights), matrix.shape[1])
    result = torch.from_numpy(np.ascontiguousarray(rounded.T if is_down else rounded))
    return result.to(weight.dtype)


def stored_arrays(weight: torch.Tensor, weights: str, *, is_down: bool) -> list[NDArray[np.generic]]:
    """Return what an artifact stores for a matrix: the weights and, for i8 and i4, the scales.

    Args:
        weight: as PyTorch has it, ``[out, in]``.
        weights: the artifact's format.
        is_down: it is down_proj's, which is stored transposed.
    """
    matrix = (weight.T if is_down else weight).float().numpy()
    if weights in ("i8", "i4"):
        return list(quantise(matrix, cast("Format", weights)))
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[weights]
    return [matrix.astype(dtype)]
