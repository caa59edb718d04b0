"""Options of `validate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prosparse_export.validation.limits import Limits

__all__ = ["ValidationOptions"]


@dataclass(frozen=True)
class ValidationOptions:
    """What to compare, and which limits to check.

    Attributes:
        tokens: maximum number of tokens, over all texts.
        context: tokens per window.
        stride: tokens from one window to the next; None for half of ``context``.
        max_abs_diff: bound on a logit's difference; None for the weight format's own, see `format_bound`.
        greedy: tokens to generate greedily per prompt; 0 to skip generation.
        prompts: number of prompts, cut from the text at different places and lengths.
        step_tokens: tokens to decode one at a time.
        operator_tokens: tokens on which each operator is compared with float64; 0 to skip the comparison.
        threads: intra-op threads; None for onnxruntime's default.
        repeat: require bit-identical logits across runs and thread counts on the whole text, not on a few tokens.
        limits: limits on quality and sparsity.
        explain: if a check fails, find the first layer and operator beyond its bound; if the artifact is exact but
            lossy, measure what quantization costs by part of the model.
        save_reference: file to save PyTorch's logits to.
        reference: file to read PyTorch's logits from, instead of running PyTorch.
        low_memory: leave PyTorch's weight matrices in their files and read one module's at a time.
    """

    tokens: int = 2048
    context: int = 512
    stride: int | None = None
    max_abs_diff: float | None = None
    greedy: int = 64
    prompts: int = 3
    step_tokens: int = 512
    operator_tokens: int = 96
    threads: int | None = None
    repeat: bool = False
    limits: Limits = field(default_factory=Limits)
    explain: bool = False
    save_reference: Path | None = None
    reference: Path | None = None
    low_memory: bool = False
