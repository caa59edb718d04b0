"""What `validate` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prosparse_export.validation.limits import Limits

__all__ = ["ValidationOptions"]


@dataclass(frozen=True)
class ValidationOptions:
    """What to compare.

    Attributes:
        tokens: at most so many tokens of text.
        context: tokens per window.
        stride: from one window to the next; None for half of ``context``.
        max_abs_diff: bound on the difference of logits; None for the one of the artifact's weight format, see
            `format_bound`.
        greedy: tokens that are generated greedily from each prompt, as many as the model has positions for; 0 for none.
        prompts: how many prompts, cut from the text at different places and lengths.
        step_tokens: tokens whose logits are also computed one by one.
        operator_tokens: tokens on which every operator is held against float64, two thirds of them at once; 0 for none.
        threads: intra-op threads, None for onnxruntime's default.
        repeat: compare bits over the whole text and over thread counts, not on a few tokens only.
        limits: what must hold besides.
        explain: if a check fails, look for the first layer and operator beyond its bound; if only a limit on quality
            does, for what rounding costs.
        save_reference: keep PyTorch's logits in this file.
        reference: take them from this file instead of running PyTorch.
        low_memory: leave the reference's matrices in their files, and read one module's at a time.
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
