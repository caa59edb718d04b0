"""Prompts and windows of a validation."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.text import Document
from prosparse_export.validation import ValidationOptions
from prosparse_export.validation.comparison_text import cut_prompts, plan_text


def test_prompts_have_different_lengths_and_places() -> None:
    prompts = cut_prompts([Document("a", np.arange(3000)), Document("b", np.arange(5000, 5100))], 5, 512)
    assert [len(p) for p in prompts] == [256, 100, 64, 67, 256]
    assert len({int(p[0]) for p in prompts}) == 5


def test_context_and_generation_fit_the_positions() -> None:
    documents = [Document("a", np.arange(3000))]
    text = plan_text(documents, ValidationOptions(context=512, greedy=64), positions=80)
    assert text.context == 80
    assert max(len(window.ids) for window in text.windows) == 80
    assert max(map(len, text.prompts)) + text.greedy == 80
    assert plan_text(documents, ValidationOptions(context=512, greedy=64), positions=None).greedy == 64


def test_stride_beyond_the_context() -> None:
    documents = [Document("a", np.arange(100))]
    with pytest.raises(ProSparseError, match="stride: expected at most the context, 64, got 65"):
        plan_text(documents, ValidationOptions(context=64, stride=65), positions=None)
