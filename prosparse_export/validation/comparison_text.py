"""The text of a validation: windows for the logits, prompts for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.text import Document, Window, windows
from prosparse_export.validation.options import ValidationOptions

__all__ = ["ComparisonText", "cut_prompts", "plan_text"]

_LONGEST_PROMPT = 256


@dataclass(frozen=True)
class ComparisonText:
    """Token ids to compare on.

    Attributes:
        documents: the tokenized texts.
        windows: windows over them that count every token once.
        prompts: prompts of different lengths, each ``[tokens]``.
        context: tokens per window.
        greedy: tokens to generate per prompt, as far as the model's positions allow.
    """

    documents: Sequence[Document]
    windows: Sequence[Window]
    prompts: Sequence[NDArray[np.int64]]
    context: int
    greedy: int


def plan_text(documents: Sequence[Document], options: ValidationOptions, positions: int | None) -> ComparisonText:
    """Cut ``documents`` into windows and prompts.

    Args:
        documents: the tokenized texts.
        options: context, stride, prompts and greedy tokens.
        positions: the model's longest context; None if unknown.

    Raises:
        ProSparseError: the stride exceeds the context.
    """
    context = min(options.context, positions or options.context, max(len(d.ids) for d in documents))
    stride = options.stride or max(context // 2, 1)
    if stride > context:
        raise ProSparseError(
            f"stride: expected at most the context, {context}, got {stride}",
            hint="a longer stride would skip tokens: lower --stride",
        )
    prompts = cut_prompts(documents, max(options.prompts, 1), context)
    room = (positions or context + options.greedy) - max(map(len, prompts))
    return ComparisonText(
        documents, list(windows(documents, context, stride)), prompts, context, min(options.greedy, room)
    )


def cut_prompts(documents: Sequence[Document], count: int, context: int) -> list[NDArray[np.int64]]:
    """Return ``count`` prompts from all over the text, of different lengths so that a batch of them is padded."""
    longest = max(min(context // 2, _LONGEST_PROMPT), 1)
    lengths = [longest, max(longest - 7, 1), max(longest // 4, 1), max(longest // 2 + 3, 1)]
    prompts = []
    for k in range(count):
        ids = documents[k % len(documents)].ids
        begin = (len(ids) * (k // len(documents))) // max(-(-count // len(documents)), 1)
        prompts.append(ids[begin : begin + lengths[k % len(lengths)]])
    return prompts
