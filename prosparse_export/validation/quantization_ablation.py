"""Measure what quantization costs by part of a model: its KL divergence with only that part quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prosparse_export.analysis.cache_scales import LayerScales
from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.export.approximate import approximate_again
from prosparse_export.export.rounded_reference import StoredAs, as_stored
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.validation.metrics import QualitySum
from prosparse_export.validation.reference import torch_forward
from prosparse_models import Checkpoint

__all__ = ["QuantizationCost", "quantization_costs"]

_TOKENS = 128


@dataclass(frozen=True)
class QuantizationCost:
    """The cost of storing one part's matrices as the artifact does, with the checkpoint's own weights elsewhere.

    Attributes:
        module: the part, such as ``model.layers.2.mlp``, or ``model.embed_tokens and lm_head`` if they share a
            matrix; "" for the whole model; "the KV cache" for its rounding to 8 bits; "the approximation" for the
            activations dropped by --approximate.
        kl: mean KL divergence per token from the checkpoint's own weights, nats.
        how: the weight formats, such as "i4".
    """

    module: str
    kl: float
    how: str

    def __str__(self) -> str:
        return f"{self.module or 'all'} {self.kl:.2g}"


def quantization_costs(
    checkpoint: Checkpoint,
    rounded: Mapping[str, StoredAs],
    ids: NDArray[np.int64],
    approximation: ApproximationRecord | None,
    scales: Sequence[LayerScales] = (),
    progress: ProgressCallback = no_progress,
) -> tuple[QuantizationCost, ...]:
    """Return the cost of the whole artifact, then of each part alone, in descending order.

    The parts are each layer's attention and FFN, the embedding and lm_head.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights, which are restored afterwards.
        rounded: the formats of the matrices that the artifact does not store in the checkpoint's own, by module path.
        ids: text ``[tokens]``; the first 128 tokens are used.
        approximation: the manifest's record of --approximate; if given, ``checkpoint`` drops activations afterwards.
        scales: scales of an 8-bit KV cache, from `cache_scales`.
        progress: called with each stage.
    """
    ids = ids[:_TOKENS]
    parts: dict[str, dict[str, StoredAs]] = {}
    for name, stored in rounded.items():
        path = name.rpartition(".")[0]
        part = path if any(c.isdigit() for c in path) else _with_tied(name, rounded, checkpoint)
        parts.setdefault(part, {})[name] = stored
    own = _logits(checkpoint, {}, ids)

    def cost(
        part: str, formats: Mapping[str, StoredAs], how: str, scales: Sequence[LayerScales] = ()
    ) -> QuantizationCost:
        quality = QualitySum(part)
        quality.add(_logits(checkpoint, formats, ids, scales), own, np.append(ids[1:], -1))
        return QuantizationCost(part, quality.result().kl_mean, how)

    costs = []
    for done, (part, some) in enumerate(parts.items()):
        progress("explain: quantization", done, len(parts) + 1)
        costs.append(cost(part, some, _formats(some)))
    how = [_formats(rounded)] if rounded else []
    if scales:
        how.append("KV cache in i8")
        costs.append(cost("the KV cache", {}, "i8", scales))
    if approximation is not None:
        with as_stored(checkpoint, {}):  # FFNs are found by running the model
            approximate_again(checkpoint.model, approximation)
        how.append(f"approximated {approximation.activation}")
        costs.append(cost("the approximation", {}, how[-1]))
    return (cost("", rounded, " and ".join(how), scales), *sorted(costs, key=lambda c: -c.kl))


def _with_tied(name: str, rounded: Mapping[str, StoredAs], checkpoint: Checkpoint) -> str:
    """Return the names of the modules that have the matrix of ``name``: an embedding and lm_head may share one."""
    weight = checkpoint.model.get_submodule(name).weight
    return " and ".join(other for other in rounded if checkpoint.model.get_submodule(other).weight is weight)


def _formats(stored: Mapping[str, StoredAs]) -> str:
    return "/".join(sorted({s.weights for s in stored.values()}))


def _logits(
    checkpoint: Checkpoint, formats: Mapping[str, StoredAs], ids: NDArray[np.int64], scales: Sequence[LayerScales] = ()
) -> NDArray[np.float32]:
    with _rounded(checkpoint, formats):
        return torch_forward(checkpoint.model, scales)(ids, None, False)[0]


@contextmanager
def _rounded(checkpoint: Checkpoint, formats: Mapping[str, StoredAs]) -> Iterator[None]:
    """Quantize matrices within the context; those in memory are restored on exit."""
    layers = [checkpoint.model.get_submodule(name) for name in formats] if checkpoint.weights is None else []
    kept = {layer: (layer.weight, layer.weight.detach().clone()) for layer in layers}
    try:
        with as_stored(checkpoint, formats):
            yield
    finally:
        with torch.no_grad():
            for layer, (parameter, values) in kept.items():
                layer.weight = parameter  # a matrix that was tied is tied again
                parameter.copy_(values)
