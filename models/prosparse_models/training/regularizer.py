"""The L1 term on the intermediate output of every FFN, without copying it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prosparse_models.ffns import Ffn

__all__ = ["ActivationL1", "l1_norm"]


class _L1(torch.autograd.Function):
    """Return x1 and its weighted L1 norm; one backward step adds both gradients.

    The tensor saved for backward is x1 itself, which the next linear layer saves anyway. The norm shares the autograd
    node of x1's own gradient, so each layer's backward runs once, after the layers above it, in the order that FSDP and
    gradient checkpointing expect.
    """

    @staticmethod
    def forward(ctx: Any, x1: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x1, weight)
        wide = torch.promote_types(x1.dtype, torch.float32)
        if weight is None:
            return x1.view_as(x1), torch.linalg.vector_norm(x1, 1, dtype=wide)
        by_token = torch.linalg.vector_norm(x1, 1, dim=-1, dtype=wide)
        return x1.view_as(x1), torch.dot(by_token.flatten(), weight.flatten().to(wide))

    @staticmethod
    def backward(ctx: Any, grad_x1: torch.Tensor, grad_norm: torch.Tensor) -> tuple[torch.Tensor, None]:
        x1, weight = ctx.saved_tensors
        factor = grad_norm if weight is None else grad_norm * weight.reshape(*x1.shape[:-1], 1).to(grad_norm.dtype)
        return torch.addcmul(grad_x1, x1.sign(), factor.to(x1.dtype)), None


def l1_norm(x1: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x1`` itself and ``sum over tokens of weight * ||x1||_1``.

    Use the result in place of ``x1``: the norm's gradient, ``weight * sign(x1)``, is added there.

    Args:
        x1: input of down_proj, [..., d_ff], floating point.
        weight: one factor per token, with as many elements as ``x1`` has tokens, 0 for padding; None: 1 for all.

    Returns:
        ``x1`` (same storage), and a scalar in float32 or wider.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _L1.apply(x1, weight)  # type: ignore[no-untyped-call]
    return result


class ActivationL1:
    """Collect the L1 norms of all FFNs in a forward pass.

    The paper's term is ``lambda * sum over layers of ||x1||_1``; it does not state the reduction over tokens. Here it
    is the **sum over neurons and layers, and the mean over all tokens of the optimizer step except padding**, across
    micro-batches and processes. So lambda is independent of batch size, gradient accumulation and number of processes:

        L_reg(lambda) = lambda * scale * sum over layers of (1/N) * sum over N tokens of ||x1[token]||_1

    ``scale`` (a recipe's ``l1_scale``) converts from other conventions. The authors' later public code sums over the
    tokens of a micro-batch and multiplies by 1e-8. If the paper's lambdas follow that convention, which it does not
    state, scale is 1e-8 times the tokens of their micro-batch: 1.6e-4 for 16,384.

    Args:
        ffns: the FFNs; their ``down`` layers have a hook until `detach`.
    """

    def __init__(self, ffns: Sequence[Ffn]) -> None:
        self._sink: list[torch.Tensor | None] | None = None
        self._active: list[torch.Tensor | None] = []
        self._weight: torch.Tensor | None = None
        self._count = False
        self._handles = [ffn.down.register_forward_pre_hook(self._hook_of(index)) for index, ffn in enumerate(ffns)]

    @contextmanager
    def collect(self, weight: torch.Tensor | None, *, count: bool = False) -> Iterator[list[torch.Tensor | None]]:
        """Yield a list that the forward pass in the body fills with one norm per FFN.

        Args:
            weight: [batch, sequence], 1 for a token and 0 for padding; None if there is no padding.
            count: count non-zero elements too, for `active`.
        """
        sink: list[torch.Tensor | None] = [None] * len(self._handles)
        self._active = [None] * len(self._handles)
        self._sink, self._weight, self._count = sink, weight, count
        try:
            yield sink
        finally:
            self._sink = None  # recomputation in backward (checkpointing) runs the hooks again, without counting

    def active(self) -> list[torch.Tensor | None]:
        """Return, per FFN, the number of non-zero elements, without padding, in the last counted forward pass."""
        return self._active

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook_of(self, index: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            if self._sink is None and not torch.is_grad_enabled():
                return arguments  # evaluation
            x1, *rest = arguments
            weight = self._weight
            x1, norm = l1_norm(x1, weight)
            if self._sink is not None:
                self._sink[index] = norm
                if self._count:
                    self._active[index] = _active(x1.detach(), weight)
            return (x1, *rest)

        return hook


def _active(x1: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    if weight is None:
        return torch.count_nonzero(x1)
    by_token = torch.count_nonzero(x1, dim=-1)
    return (by_token * weight.reshape(by_token.shape)).sum()
