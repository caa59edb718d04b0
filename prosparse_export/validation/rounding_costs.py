"""Which parts of a model lose how much by the rounding of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prosparse_export.stored_weights import StoredAs, as_stored
from prosparse_export.validation.metrics import QualitySum
from prosparse_export.validation.reference import torch_forward
from prosparse_models import Checkpoint

__all__ = ["RoundingCost", "rounding_costs"]

_TOKENS = 128


@dataclass(frozen=True)
class RoundingCost:
    """What it costs to store one part's matrices as the artifact does, all else being the checkpoint's.

    Attributes:
        module: the part, such as ``model.layers.2.mlp``; "" for all of the model.
        kl: mean KL divergence per token from the checkpoint's own model, nats.
    """

    module: str
    kl: float

    def __str__(self) -> str:
        return f"{self.module or 'all'} {self.kl:.2g}"


def rounding_costs(
    checkpoint: Checkpoint,
    formats: Mapping[str, StoredAs],
    ids: NDArray[np.int64],
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[RoundingCost, ...]:
    """Return the cost of all of the rounding, then of each part alone, the dearest first.

    A part is what matrices share: a block's attention, its FFN; the embedding and lm_head are parts of their own.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights; they are the same afterwards.
        formats: how the artifact stores matrices.
        ids: some text; of its ``[tokens]`` the first 128 are looked at.
        tell: progress, called with (stage, done, total).
    """
    ids = ids[:_TOKENS]
    parts: dict[str, dict[str, StoredAs]] = {"": dict(formats)}
    for name, stored in formats.items():
        path = name.rpartition(".")[0]
        parts.setdefault(path if any(c.isdigit() for c in path) else name, {})[name] = stored
    own = _logits(checkpoint, {}, ids)
    costs = []
    for done, (part, some) in enumerate(parts.items()):
        tell("explain: rounding", done, len(parts))
        quality = QualitySum(part)
        quality.add(_logits(checkpoint, some, ids), own, np.append(ids[1:], -1))
        costs.append(RoundingCost(part, quality.result().kl_mean))
    return (costs[0], *sorted(costs[1:], key=lambda cost: -cost.kl))


def _logits(checkpoint: Checkpoint, formats: Mapping[str, StoredAs], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    with _rounded(checkpoint, formats):
        return torch_forward(checkpoint.model)(ids, None, False)[0]


@contextmanager
def _rounded(checkpoint: Checkpoint, formats: Mapping[str, StoredAs]) -> Iterator[None]:
    """Compute with rounded matrices, and put back those in memory."""
    layers = {name: checkpoint.model.get_submodule(name) for name in formats} if checkpoint.weights is None else {}
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        with as_stored(checkpoint, formats):
            yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(kept[name])
