"""Which format each matrix of a model is stored in, and which of its inputs matter most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, FfnFormat, Format, format_of, mixed_format
from graph_passes.weights.packed_names import parts_of
from graph_passes.weights.quantization import Rounding

__all__ = ["RoundedMatrix", "WeightPlan"]

Packed = tuple[NDArray[np.uint8], NDArray[np.float16]]


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix that was rounded to 4 bits before the passes run.

    Attributes:
        integers: two per byte, as `quantize` returns them.
        scales: ``[rows, groups]``.
        weights: i4 or nl4.
        is_down: its rows are a down_proj's inputs; else they are the outputs.
        powers: what the matrix was divided by before, ``[d_model]``; down_proj only.
    """

    integers: NDArray[np.uint8]
    scales: NDArray[np.float16]
    weights: Format
    is_down: bool = False
    powers: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class WeightPlan:
    """How the matrices of a model are stored.

    Attributes:
        ffn: format of the rewritten FFNs' matrices.
        other: format of all other matrices.
        exceptions: formats of single matrices, by module path.
        importance: mean square of each input channel, ``[d_in]``, by module path: the weight of a column's rounding
            errors. Matrices without one are rounded with equal weights.
        rounding: as in `quantize`.
        rounded: matrices in 4 bits that are rounded already, by module path.
    """

    ffn: FfnFormat
    other: Format
    exceptions: Mapping[str, Format] = field(default_factory=dict)
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rounding: Rounding | None = None
    rounded: Mapping[str, RoundedMatrix] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: FfnFormat, rounding: Rounding | None = None) -> WeightPlan:
        """Return the plan that stores every matrix in one format (that of gate_proj for those outside FFNs)."""
        return cls(weights, format_of(weights, is_down=False), rounding=rounding)

    def linear_format(self, module: str) -> Format:
        """Return the format of a matrix outside the rewritten FFNs."""
        return self.exceptions.get(module, self.other)

    def ffn_format(self, modules: Sequence[str]) -> FfnFormat:
        """Return the format of an FFN: the narrowest that no matrix of it finds too narrow.

        Args:
            modules: module paths of its linear layers, down_proj last.
        """
        if not self.exceptions:
            return self.ffn
        first = [self.exceptions.get(name, format_of(self.ffn, is_down=False)) for name in modules[:-1]]
        down = self.exceptions.get(modules[-1], format_of(self.ffn, is_down=True))
        return mixed_format(max(first, key=lambda name: FORMAT_SPECS[name].bits), down)

    def already_rounded(self, module: str, weights: Format, *, is_down: bool = False) -> Callable[[], Packed] | None:
        """Return what reads a matrix's integers and scales; None if it is still to be rounded.

        Args:
            module: its module path, or several packed into one matrix.
            weights: the format that it is stored in.
            is_down: the rows are to be a down_proj's inputs.
        """
        parts = [self.rounded.get(part) for part in parts_of(module)]
        known = [p for p in parts if p is not None and p.is_down == is_down and p.weights == weights]
        if len(known) < len(parts):
            return None
        return lambda: (np.concatenate([p.integers for p in known]), np.concatenate([p.scales for p in known]))

    def chosen_powers(self, module: str, weights: Format) -> NDArray[np.float32] | None:
        """Return the powers that a down_proj was divided by when it was rounded; None if it is still to be rounded."""
        known = self.rounded.get(module)
        return known.powers if known is not None and known.is_down and known.weights == weights else None
