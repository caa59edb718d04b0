"""FATReLU, the activation of ProSparse models after threshold shifting."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["FatReLU", "set_ffn_activation"]


class FatReLU(nn.Module):
    """ReLU with a raised threshold: ``z`` where ``z > threshold``, else 0. Values are not shifted.

    The boundary itself (``z == threshold``) is zero, as in ``torch.nn.functional.threshold``, the
    released CUDA operator and vLLM; the paper's formula keeps it. A NaN stays a NaN.

    Args:
        threshold: FATReLU t, >= 0 and finite, in units of the gate's pre-activation.

    Shape:
        Any; the result has the input's shape and dtype.

    Raises:
        ValueError: ``threshold`` is negative or not finite.

    Source:
        Song et al., "ProSparse", COLING 2025, section 3.2, equation 3 (arXiv:2402.13516).

    Example:
        >>> FatReLU(0.5)(torch.tensor([-1.0, 0.5, 0.75]))
        tensor([0.0000, 0.0000, 0.7500])
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        if not 0.0 <= threshold < float("inf"):
            raise ValueError(f"FATReLU threshold: expected a finite number >= 0, got {threshold}")
        self.threshold = float(threshold)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the activation of pre-activation ``z``."""
        return nn.functional.threshold(z, self.threshold, 0.0)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this module."""
        return f"threshold={self.threshold}"


def set_ffn_activation(model: nn.Module, activation: nn.Module) -> int:
    """Replace the activation of every gated feed-forward block and return how many there are.

    A block is a module with ``gate_proj``, ``up_proj``, ``down_proj`` and ``act_fn``: the
    structure of LLaMA and its relatives in transformers.
    """
    count = 0
    for module in model.modules():
        if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            module.act_fn = activation
            count += 1
    return count
