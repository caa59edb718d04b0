"""The L1 term on the intermediate output of every FFN, without a copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prosparse_models.ffns import Ffn

__all__ = ["ActivationL1", "l1_norm"]


class _L1(torch.autograd.Function):
    """Pass x1 through and give its weighted L1 norm; one backward step adds both gradients.

    The tensor that is saved for backward is x1 itself, which the linear layer after it saves anyhow. As
    the norm hangs on the node through which x1's own gradient passes, a layer's backward runs once,
    after the layers above it: FSDP and gradient checkpointing see the order that they expect.
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

    The result must be used in place of ``x1``: the norm's gradient, ``weight * sign(x1)``, joins there.

    Args:
        x1: input of down_proj, [..., d_ff], floating point.
        weight: one factor per token, [...] with as many elements as ``x1`` has tokens, 0 for padding;
            None counts every token once.

    Returns:
        ``x1`` (same storage), and a scalar, float32 or wider, whatever ``x1``'s dtype.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _L1.apply(x1, weight)  # type: ignore[no-untyped-call]
    return result


class ActivationL1:
    """Collect the L1 norms of all FFNs in a forward pass.

    The paper's term is ``lambda * sum over layers of ||x1||_1``; how tokens are reduced it does not say.
    Here: **sum over neurons, sum over layers, mean over the tokens that are not padding**, where the mean
    is over all tokens of the optimizer step: all micro-batches, all processes. So lambda means the same
    for any batch size, any accumulation and any number of processes:

        L_reg(lambda) = lambda * scale * sum over layers of (1/N) * sum over N tokens of ||x1[token]||_1

    ``scale`` (a recipe's ``l1_scale``) maps another convention to this one. The authors' later public
    code sums over the tokens of a micro-batch and multiplies by 1e-8. If the paper's lambdas were meant
    so, which it does not say, scale is 1e-8 times the tokens of their micro-batch: 1.6e-4 for 16,384.

    Args:
        ffns: the FFNs to watch; their ``down`` layers get a hook, until `detach`.
    """

    def __init__(self, ffns: Sequence[Ffn]) -> None:
        self._sink: list[torch.Tensor | None] | None = None
        self._active: list[torch.Tensor | None] = []
        self._weight: torch.Tensor | None = None
        self._count = False
        self._handles = [ffn.down.register_forward_pre_hook(self._hook_of(index)) for index, ffn in enumerate(ffns)]

    @contextmanager
    def collect(self, weight: torch.Tensor | None, *, count: bool = False) -> Iterator[list[torch.Tensor | None]]:
        """Yield a list that the forward pass inside fills with one norm per FFN.

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
            self._sink = None  # recomputation in backward (checkpointing) hooks again but counts nothing

    def active(self) -> list[torch.Tensor | None]:
        """Return, per FFN, the non-zero elements at real tokens in the last forward pass that counted."""
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
