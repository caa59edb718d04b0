"""Make Gemma 3n's Gaussian top-k traceable by computing its constant once."""

from __future__ import annotations

import functools

import torch
from torch import nn

__all__ = ["fix_gaussian_topk"]


def fix_gaussian_topk(model: nn.Module) -> int:
    """Replace the quantile in Gemma 3n's sparse layers by a constant, and return the number of layers.

    transformers recomputes this quantile of the normal distribution on every call, by an inverse error function that
    ONNX lacks.
    """
    count = 0
    for module in model.modules():
        share = getattr(module, "activation_sparsity", 0.0)
        if hasattr(module, "_gaussian_topk") and share > 0.0:
            normal = torch.distributions.normal.Normal(0, 1)
            quantile = normal.icdf(torch.tensor(share, dtype=torch.float32))  # type: ignore[no-untyped-call]
            object.__setattr__(module, "_gaussian_topk", functools.partial(_gaussian_topk, float(quantile)))
            count += 1
    return count


def _gaussian_topk(quantile: float, gate: torch.Tensor) -> torch.Tensor:
    """Return ``relu(gate - (mean + quantile * std))`` over the last dimension.

    Source: transformers' Gemma3nTextMLP; You et al., "Spark Transformer", arXiv:2506.06644, section 3.
    """
    mean = gate.mean(dim=-1, keepdim=True)
    deviation = gate.std(dim=-1, keepdim=True, unbiased=False)
    return nn.functional.relu(gate - (mean + deviation * quantile))
