"""Choose which matrices of a 4-bit model are stored in i8: those that gain most accuracy for their bytes.

What a part costs is measured: the KL divergence of the model with this part alone in 4 bits. Costs of parts are taken
to add up. Parts are the embedding with lm_head, and each kind of projection in up to four bands of layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from graph_passes import FORMAT_SPECS, Format, dequantize, divided, output_powers, quantize
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.export.substituted_weights import substituted_weights
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_models import Checkpoint

__all__ = [
    "Part",
    "PartRounding",
    "embedding_and_head",
    "find_parts",
    "matrix_bytes",
    "mean_nll",
    "measure_costs",
    "widest_gains",
]

_BANDS = 4
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class PartRounding:
    """How matrices are rounded while their cost is measured.

    Attributes:
        importance: as in `WeightPlan`.
        is_down: modules that are stored as a sparse operator's down_proj.
    """

    importance: Mapping[str, NDArray[np.float32]]
    is_down: Collection[str]

    def values(self, name: str, matrix: NDArray[np.float32], weights: Format) -> NDArray[np.float32]:
        """Return the values of a matrix ``[d_out, d_in]`` as stored."""
        if name in self.is_down:
            powers = output_powers(matrix.T)
            down = quantize(divided(matrix.T, powers), weights, rounding=library_rounding())
            return np.ascontiguousarray((dequantize(*down, len(matrix), weights) * powers).T)
        stored = quantize(matrix, weights, self.importance.get(name), rounding=library_rounding())
        return dequantize(*stored, matrix.shape[1], weights)


@dataclass(frozen=True)
class Part:
    """Matrices that get the same format.

    Attributes:
        name: for the user, such as ``v_proj, layers 0 to 7``.
        modules: their module paths.
        weights: their number; a matrix that two modules share counts once.
        narrow: the 4-bit format.
        needs: the part that must be in i8 before this one: no operator has gate_proj in i8 and down_proj in 4 bits.
        kl: measured cost in 4 bits, nats per token.
    """

    name: str
    modules: tuple[str, ...]
    weights: int
    narrow: Format
    needs: str = ""
    kl: float = 0.0

    @property
    def more_bytes(self) -> int:
        """What i8 takes more than 4 bits."""
        return _bytes(self.weights, "i8") - _bytes(self.weights, self.narrow)


def find_parts(
    model: torch.nn.Module, projections: Collection[str], ffns: Sequence[Sequence[str]], narrow: Format
) -> list[Part]:
    """Return the parts of a model, the embedding and lm_head first.

    Args:
        model: the causal LM.
        projections: their module paths.
        ffns: module paths of each rewritten FFN's projections, down_proj last.
        narrow: the 4-bit format.
    """
    down_of = {module: modules[-1] for modules in ffns for module in modules[:-1]}
    first_kind = {module: " and ".join(map(_kind, modules[:-1])) for modules in ffns for module in modules[:-1]}
    layers = sorted({_layer(name) for name in projections if _layer(name) is not None})  # type: ignore[type-var]
    size = math.ceil(len(layers) / min(_BANDS, max(len(layers), 1))) if layers else 1
    groups: dict[tuple[str, int], list[str]] = {}
    for name in projections:
        layer = _layer(name)
        kind = first_kind.get(name) or _kind(name)
        groups.setdefault((kind, -1 if layer is None else layers.index(layer) // size), []).append(name)
    titles = {group: group[0] + _where(names) for group, names in groups.items()}
    title_of = {name: titles[group] for group, names in groups.items() for name in names}
    parts = []
    for group, names in groups.items():
        weights = sum(_weights(model.get_submodule(name)) for name in names)
        needs = next((title_of[down_of[name]] for name in names if name in down_of), "")
        parts.append(Part(titles[group], tuple(names), weights, narrow, needs))
    ends = {name: module for name, module in model.named_modules() if module in embedding_and_head(model)}
    shared = {id(module.weight): _weights(module) for module in ends.values()}
    return [Part("embedding and lm_head", tuple(ends), sum(shared.values()), narrow), *parts]


def matrix_bytes(parts: Sequence[Part]) -> int:
    """Return what all parts take in 4 bits."""
    return sum(_bytes(part.weights, part.narrow) for part in parts)


def _bytes(weights: int, stored: Format) -> int:
    return math.ceil(weights * FORMAT_SPECS[stored].bits_per_weight / 8)


def embedding_and_head(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a model's token embedding and lm_head, those that it has."""
    found = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return [module for module in found if module is not None]


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _where(names: Sequence[str]) -> str:
    numbers = [number for number in map(_layer, names) if number is not None]
    return f", layers {min(numbers)} to {max(numbers)}" if numbers else ""


def _layer(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _weights(module: torch.nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()


def measure_costs(
    checkpoint: Checkpoint,
    parts: Sequence[Part],
    ids: torch.Tensor,
    rounding: PartRounding,
    progress: ProgressCallback,
) -> list[Part]:
    """Return the parts with their costs.

    Args:
        checkpoint: the model; its matrices may be in their files.
        parts: from `find_parts`.
        ids: text, ``[rows, tokens]``.
        rounding: how they are rounded.
        progress: called with each part.
    """
    own = _log_probabilities(checkpoint, ids, {}, rounding)
    measured = []
    for done, part in enumerate(parts):
        progress("measure formats", done, len(parts))
        found = _log_probabilities(checkpoint, ids, dict.fromkeys(part.modules, part.narrow), rounding)
        kl = float((own.exp() * (own - found)).sum(-1).mean())
        measured.append(replace(part, kl=max(kl, 0.0)))
    return measured


def mean_nll(checkpoint: Checkpoint, ids: torch.Tensor, formats: Mapping[str, Format], rounding: PartRounding) -> float:
    """Return the mean negative log-likelihood of a token, in nats, with matrices in some formats."""
    log_probabilities = _log_probabilities(checkpoint, ids, formats, rounding)
    return -float(log_probabilities[:, :-1].gather(-1, ids[:, 1:, None]).mean())


def widest_gains(parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts in the order in which to store them in i8: most cost per byte first."""
    left = sorted(parts, key=lambda part: (-part.kl / max(part.more_bytes, 1), part.name))
    taken: set[str] = set()
    while left:
        part = next(p for p in left if not p.needs or p.needs in taken or all(q.name != p.needs for q in left))
        left.remove(part)
        taken.add(part.name)
        yield part


@torch.no_grad()
def _log_probabilities(
    checkpoint: Checkpoint, ids: torch.Tensor, formats: Mapping[str, Format], rounding: PartRounding
) -> torch.Tensor:
    def substitute(name: str, matrix: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rounding.values(name, matrix.numpy(), formats[name]))

    with quiet(), as_stored(checkpoint, {}), substituted_weights(checkpoint.model, formats, substitute):
        return torch.log_softmax(checkpoint.model(input_ids=ids, use_cache=False).logits.float(), -1)
