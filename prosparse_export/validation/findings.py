"""A finding of `explain`: where an artifact first leaves its bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights, layer_of

__all__ = ["Finding", "weight_findings"]


@dataclass(frozen=True)
class Finding:
    """Where an artifact first leaves its bound.

    Attributes:
        run: the way of running it; the initializer's name if a stored weight is wrong.
        layer: number of the layer; None before the first and after the last.
        op: the operator, or the operators between two checked values.
        module: the PyTorch module; "" between modules.
        token: first token beyond the bound, as a position in its text; -1 for a stored weight.
        difference: the worst difference; may be NaN.
        bound: the bound on that number.
    """

    run: str
    layer: int | None
    op: str
    module: str
    token: int
    difference: float
    bound: float

    @property
    def where(self) -> str:
        """The layer, in words."""
        return "outside the layers" if self.layer is None else f"layer {self.layer}"

    def __str__(self) -> str:
        module = f" ({self.module})" if self.module else ""
        if self.token < 0:
            return f"{self.where}: {self.op}{module}: {self.run} differs from the checkpoint"
        return (
            f"{self.where}: {self.op}{module}, token {self.token}, {self.run}: "
            f"off by {self.difference:.3g}, bound {self.bound:.3g}"
        )


def weight_findings(operators: Sequence[OperatorCheck], weights: StoredWeights | None) -> list[Finding]:
    """Return a finding for each stored weight that differs from the checkpoint."""
    found = [(name, o.layer, o.op, o.module) for o in operators for name in o.wrong_weights]
    found += [(name, layer_of(name), "initializer", "") for name in (weights.wrong if weights is not None else ())]
    return [Finding(name, layer, op, module, -1, math.nan, 0.0) for name, layer, op, module in found]
