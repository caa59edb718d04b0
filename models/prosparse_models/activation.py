"""FATReLU, the activation of ProSparse models after threshold shifting."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["FatReLU", "has_up_relu", "set_drelu", "set_ffn_activation", "set_up_relu"]


class FatReLU(nn.Module):
    """ReLU with a raised threshold: ``z`` where ``z > threshold``, else 0. Values are not shifted.

    At the boundary (``z == threshold``) the result is zero, as in ``torch.nn.functional.threshold``, the
    released CUDA operator and vLLM; the paper's formula keeps the value. NaN stays NaN.

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


_NAMES = ("act_fn", "activation_fn", "intermediate_act_fn", "activation", "act")


def set_ffn_activation(model: nn.Module, activation: nn.Module) -> int:
    """Replace the activation of every FFN and return the number of FFNs.

    An FFN is a module with linear layers and an activation module under one of transformers' names (``act_fn`` in
    LLaMA, ``activation_fn`` in OPT, ``act`` in T5 and GPT-NeoX).
    """
    count = 0
    for module in list(model.modules()):
        if not any(isinstance(child, nn.Linear) for child in module.children()):
            continue
        name = next((name for name in _NAMES if callable(getattr(module, name, None))), None)
        if name is not None:
            setattr(module, name, activation)
            count += 1
    return count


def set_drelu(model: nn.Module) -> int:
    """Apply ReLU to gate_proj *and* up_proj of every gated FFN and return the number of FFNs.

    Source:
        Song et al., "Turbo Sparse", arXiv:2406.05955, section 3 (dReLU).
    """
    count = 0
    for module in list(model.modules()):
        up = getattr(module, "up_proj", None)
        if isinstance(up, nn.Module) and all(hasattr(module, n) for n in ("gate_proj", "down_proj", "act_fn")):
            module.act_fn = nn.ReLU()
            set_up_relu(up, True)
            count += 1
    return count


def set_up_relu(up: nn.Module, wanted: bool) -> None:
    """Apply ReLU to the output of ``up``, as dReLU does, or stop doing so; idempotent."""
    for key in [key for key, hook in up._forward_hooks.items() if hook is _relu_output]:
        del up._forward_hooks[key]
    if wanted:
        up.register_forward_hook(_relu_output)


def has_up_relu(up: nn.Module) -> bool:
    """Return whether `set_up_relu` is in effect on ``up``; deep copies keep it."""
    return any(hook is _relu_output for hook in up._forward_hooks.values())


def _relu_output(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return nn.functional.relu(output)
