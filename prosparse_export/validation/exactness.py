"""Compare an artifact's logits and greedy tokens with the reference's, in every way of running it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.sampling import NotFiniteError
from prosparse_export.text import Window
from prosparse_export.validation.metrics import Difference, QualitySum
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.reference import Continuation, Reference

__all__ = ["Comparison", "Expected", "generate_greedily", "greedy_match", "run_all"]


@dataclass(frozen=True)
class Comparison:
    """One way of running the artifact, compared with the dense model of the same stored weights.

    Attributes:
        name: the way of running it.
        tokens: positions compared.
        max_abs_diff: largest difference of a logit; NaN if a logit is NaN.
        top1_differs: positions whose top-1 token differs, ties excluded.
        ties: positions whose top-1 token differs while the reference's two largest logits are within twice the bound.
        greedy_tokens: generated tokens compared.
        greedy_differs: generated tokens that differ, unless the first difference is a tie.
        passed: whether everything is within the bounds.
        first: first position beyond the bound, counted over the windows; -1 if all are within or outside windows.
    """

    name: str
    tokens: int
    max_abs_diff: float
    top1_differs: int
    ties: int
    greedy_tokens: int
    greedy_differs: int
    passed: bool
    first: int = -1


@dataclass(frozen=True)
class Expected:
    """The reference that a run is compared with.

    Attributes:
        reference: logits and continuations.
        windows: windows of the text.
        bound: bound on a logit's difference.
        options: how much to run.
    """

    reference: Reference
    windows: Sequence[Window]
    bound: float
    options: ValidationOptions

    def comparison(
        self, name: str, difference: Difference, generated: Sequence[NDArray[np.int64]], *, in_windows: bool = True
    ) -> Comparison:
        """Return the comparison of a run's logits and generated tokens, one array per prompt or an empty list."""
        tokens, differs = 0, 0
        for actual, continuation in zip(generated, self.reference.continuations, strict=False):
            expected, gaps = continuation.greedy[: len(actual)], continuation.gaps
            end = len(expected)
            wrong = np.flatnonzero(actual[:end] != expected)
            if len(wrong) and gaps[wrong[0]] <= 2 * self.bound:
                end = int(wrong[0])  # a tie: the tokens after it may differ
            else:
                differs += len(wrong)
            tokens += end
        d = difference
        passed = d.max_abs_diff <= self.bound and d.differs == 0 and differs == 0
        first = d.first if in_windows else -1
        return Comparison(name, d.tokens, d.max_abs_diff, d.differs, d.ties, tokens, differs, passed, first)


def run_all(
    model: SparseModel,
    label: str,
    expected: Expected,
    quality: QualitySum,
    original: Reference,
    progress: ProgressCallback,
) -> tuple[list[Comparison], list[int]]:
    """Run ``model`` as a prefill, token by token and as a padded batch.

    Args:
        model: the artifact in a session.
        label: prefix of the comparisons' names.
        expected: the reference that it must equal.
        quality: receives the logits of the whole text, against ``original``.
        original: PyTorch with the checkpoint's own weights.
        progress: called with each stage.

    Returns:
        the comparisons, and for each prompt the greedy tokens before the first that differs from ``original``'s.
    """
    results = []
    name = f"{label}: prefill"
    generated = [generate_greedily(model, [c.ids], expected.options.greedy)[0] for c in original.continuations]
    difference = _prefill(model, expected, quality, original, name, progress)
    results.append(expected.comparison(name, difference, generated))
    matches = [greedy_match(ids, c) for ids, c in zip(generated, original.continuations, strict=True)]
    name = f"{label}: token by token"
    results.append(expected.comparison(name, _by_token(model, expected, name, progress), []))
    count = len(expected.reference.continuations)
    if count > 1:
        name = f"{label}: batch of {count}, left-padded"
        progress(name, 0, 0)
        prompts = [c.ids for c in expected.reference.continuations]
        batch = generate_greedily(model, prompts, expected.options.greedy)
        results.append(expected.comparison(name, _padded(model, expected), batch, in_windows=False))
    return results, matches


def greedy_match(actual: NDArray[np.int64], continuation: Continuation) -> int:
    """Return the number of tokens before the first difference from the reference's."""
    expected = continuation.greedy[: len(actual)]
    wrong = np.flatnonzero(actual[: len(expected)] != expected)
    return int(wrong[0]) if len(wrong) else len(expected)


def generate_greedily(model: SparseModel, prompts: Sequence[NDArray[np.int64]], count: int) -> list[NDArray[np.int64]]:
    """Return ``count`` greedy tokens for each prompt of a batch; end-of-text tokens do not stop it."""
    if count == 0:
        return [np.zeros(0, np.int64) for _ in prompts]
    endless = replace(model, stop=frozenset())
    steps = []
    with contextlib.suppress(NotFiniteError):  # the remaining tokens are filled with -1
        for step in endless.stream([list(map(int, prompt)) for prompt in prompts], max_new_tokens=count):
            steps.append(step)
    steps += [np.full(len(prompts), -1, np.int64)] * (count - len(steps))
    return list(np.stack(steps, axis=1))


def _prefill(
    model: SparseModel,
    expected: Expected,
    quality: QualitySum,
    original: Reference,
    stage: str,
    progress: ProgressCallback,
) -> Difference:
    difference = Difference()
    total, done = sum(len(w.ids) for w in expected.windows), 0
    for (window, rows), (_, own) in zip(
        expected.reference.rows(expected.windows), original.rows(expected.windows), strict=True
    ):
        progress(stage, done, total)
        logits = model.forward(window.ids[None], np.ones((1, len(window.ids)), np.int64))[0][0, window.first :]
        difference.add(logits, rows, expected.bound)
        quality.add(logits, own, window.targets)
        done += len(window.ids)
    return difference


def _by_token(model: SparseModel, expected: Expected, stage: str, progress: ProgressCallback) -> Difference:
    difference = Difference()
    left, total = expected.options.step_tokens, expected.options.step_tokens
    for window, rows in expected.reference.rows(expected.windows):
        if left <= 0:
            break
        cache: Cache | None = None
        if window.first:  # the counted rows begin in the middle of a context
            head = window.ids[None, : window.first]
            _, cache = model.forward(head, np.ones_like(head))
        count = min(left, len(window.ids) - window.first)
        for row, i in enumerate(range(window.first, window.first + count)):
            progress(stage, total - left, total)
            logits, cache = model.forward(window.ids[None, i : i + 1], np.ones((1, i + 1), np.int64), cache)
            difference.add(logits[0], rows[row : row + 1], expected.bound)
            left -= 1
    return difference


def _padded(model: SparseModel, expected: Expected) -> Difference:
    difference = Difference()
    prompts = expected.reference.continuations
    ids, mask = pad_left([c.ids for c in prompts])
    logits, _ = model.forward(ids, mask)
    for row, c in enumerate(prompts):
        difference.add(logits[row, -len(c.ids) :], c.logits, expected.bound)
    return difference


def pad_left(prompts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and mask, ``[batch, longest]``, of prompts padded on the left."""
    width = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    return ids, mask
