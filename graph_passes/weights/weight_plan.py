"""Which format each matrix of a model is stored in, and which of its inputs matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graph_passes.formats import FORMAT_SPECS, FfnFormat, Format, format_of, mixed_format
from graph_passes.weights.quantization import Rounding

__all__ = ["WeightPlan"]


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
    """

    ffn: FfnFormat
    other: Format
    exceptions: Mapping[str, Format] = field(default_factory=dict)
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rounding: Rounding | None = None

    @classmethod
    def of(cls, weights: FfnFormat, rounding: Rounding | None = None) -> WeightPlan:
        """Return the plan that stores every matrix in one format (i4 for those outside FFNs in i4i8)."""
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
