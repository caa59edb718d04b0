"""Compare an artifact with the PyTorch model that it came from, on real text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedModel

from prosparse_export.artifact import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.model_folder import load_model_folder, quiet
from prosparse_export.runtime import Cache, SparseModel
from prosparse_export.stored_weights import format_bound, with_stored_weights

__all__ = ["Comparison", "Validation", "ValidationOptions", "default_text", "validate"]


@dataclass(frozen=True)
class ValidationOptions:
    """What to compare.

    Attributes:
        tokens: tokens of text whose logits are compared.
        context: tokens per window.
        max_abs_diff: bound on the difference of logits; None for the one of the artifact's weight format, see
            `format_bound`.
        greedy: tokens that are generated greedily from each of three prompts.
        step_tokens: tokens whose logits are also computed one by one; None for all.
        threads: intra-op threads, None for onnxruntime's default.
    """

    tokens: int = 2048
    context: int = 512
    max_abs_diff: float | None = None
    greedy: int = 64
    step_tokens: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Comparison:
    """One way of running the artifact against PyTorch float32.

    Attributes:
        name: what was run.
        tokens: positions compared.
        max_abs_diff: largest difference of a logit; NaN if there was one.
        top1_differs: positions where the likeliest token differs beyond a tie.
        ties: positions where it differs and PyTorch's own two best are within twice the bound.
        greedy_tokens: generated tokens compared; 0 if none.
        greedy_differs: those that differ, up to and from the first difference beyond a tie.
        passed: all within the bounds.
    """

    name: str
    tokens: int
    max_abs_diff: float
    top1_differs: int
    ties: int
    greedy_tokens: int
    greedy_differs: int
    passed: bool


@dataclass(frozen=True)
class Validation:
    """All comparisons."""

    comparisons: tuple[Comparison, ...]
    max_abs_diff: float

    @property
    def passed(self) -> bool:
        """Every comparison is within the bounds."""
        return all(c.passed for c in self.comparisons)


def default_text() -> str:
    """Return the bundled text: Wikipedia introductions that the demo model was not trained on."""
    return (files("prosparse_export") / "text" / "heldout_wikipedia.txt").read_text(encoding="utf-8")


def validate(
    folder: Path,
    path: Path,
    options: ValidationOptions | None = None,
    *,
    text: str | None = None,
    trust_remote_code: bool = False,
    report: Callable[[str, int, int], None] | None = None,
) -> Validation:
    """Compare ``path`` with the model in ``folder``, in every way of running it.

    With and without the library: prefill in one go, token by token, a left-padded batch of three, and
    greedy generation.

    Raises:
        ProSparseError: a model cannot be read, or the text is too short.
    """
    options = options or ValidationOptions()
    tell = report or (lambda *_: None)
    tell("load", 0, 0)
    model = load_model_folder(Path(folder), trust_remote_code=trust_remote_code).model
    manifest = read_manifest(Path(path))
    blocks = [layer["linears"] for layer in manifest.get("ffn", {}).get("layers", []) if not layer["reason"]]
    weights = manifest.get("weight_format", "f32")
    with_stored_weights(model, blocks, weights)
    windows = _windows(Path(folder), default_text() if text is None else text, options)
    tell("PyTorch", 0, 0)
    reference = _Reference(model, windows, options)
    if options.max_abs_diff is None:
        reference.bound = format_bound(weights, len(blocks), max(float(np.abs(x).max()) for x in reference.logits))
    comparisons: list[Comparison] = []
    for library in (True, False):
        sparse = SparseModel.open(path, library=library, threads=options.threads)
        label = "with library" if library else "without library"
        for name, run in _RUNS.items():
            tell(f"{label}: {name}", 0, 0)
            comparisons.append(run(sparse, reference, f"{label}: {name}"))
    return Validation(tuple(comparisons), reference.bound)


def _windows(folder: Path, text: str, options: ValidationOptions) -> list[NDArray[np.int64]]:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            ids = np.asarray(tokenizer(text)["input_ids"], np.int64)
    except (OSError, ValueError) as error:
        raise ProSparseError(f"tokenizer: {folder}: cannot be read: {' '.join(str(error).split())}") from error
    if len(ids) < options.tokens:
        raise ProSparseError(
            f"text: expected {options.tokens} tokens, got {len(ids)}", hint="give a longer text or a smaller --tokens"
        )
    starts = range(0, options.tokens, options.context)
    return [ids[start : min(start + options.context, options.tokens)] for start in starts]


class _Reference:
    """PyTorch's logits and greedy continuations."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, windows: list[NDArray[np.int64]], options: ValidationOptions) -> None:
        self.options = options
        self.bound = options.max_abs_diff if options.max_abs_diff is not None else 1e-3
        self.windows = windows
        self.logits = [model(input_ids=torch.from_numpy(w[None])).logits[0].float().numpy() for w in windows]
        first = windows[0]
        lengths = [n for n in (len(first) // 2, len(first) // 2 - 7, len(first) // 8) if n > 0]
        self.prompts = [first[:n] for n in lengths]  # of different lengths, so that a batch of them is padded
        self.continuations = [_greedy(model, prompt, options.greedy) for prompt in self.prompts]

    def compare(
        self,
        name: str,
        pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
        generated: list[NDArray[np.int64]],
    ) -> Comparison:
        """Compare (actual, expected) logits, each ``[tokens, vocabulary]``, and generated tokens by prompt."""
        bound = self.bound
        difference, differs, ties, tokens = 0.0, 0, 0, 0
        for actual, expected in pairs:
            difference = float(np.maximum(difference, np.abs(actual - expected).max()))  # maximum keeps a NaN
            best_two = np.sort(np.partition(expected, -2, axis=-1)[:, -2:], axis=-1)
            tied = best_two[:, 1] - best_two[:, 0] <= 2 * bound
            other = actual.argmax(-1) != expected.argmax(-1)
            differs += int((other & ~tied).sum())
            ties += int((other & tied).sum())
            tokens += len(expected)
        greedy_tokens, greedy_differs = 0, 0
        for actual_ids, (expected_ids, gaps) in zip(generated, self.continuations, strict=False):
            wrong = np.flatnonzero(actual_ids[: len(expected_ids)] != expected_ids[: len(actual_ids)])
            end = len(expected_ids)
            if len(wrong) and gaps[wrong[0]] <= 2 * bound:
                end = int(wrong[0])  # a tie: what follows it may differ by right
            elif len(wrong) or len(actual_ids) != len(expected_ids):
                greedy_differs += max(len(wrong), 1)
            greedy_tokens += end
        passed = difference <= bound and differs == 0 and greedy_differs == 0
        return Comparison(name, tokens, difference, differs, ties, greedy_tokens, greedy_differs, passed)


@torch.no_grad()
def _greedy(
    model: PreTrainedModel, prompt: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ``count`` greedy tokens and, for each, the gap between PyTorch's two best logits."""
    ids, past = torch.from_numpy(prompt[None]), None
    tokens, gaps = [], []
    for _ in range(count):
        result = model(input_ids=ids, past_key_values=past, use_cache=True)
        best = result.logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        ids, past = best.indices[:1][None], result.past_key_values
    return np.asarray(tokens, np.int64), np.asarray(gaps, np.float32)


def _generate(model: SparseModel, prompts: list[NDArray[np.int64]], count: int) -> list[NDArray[np.int64]]:
    """Greedy tokens of one batch; ends are ignored, as in the reference."""
    endless = SparseModel(model.session, model.path, None, frozenset(), model._past)
    steps = list(endless.stream([list(map(int, prompt)) for prompt in prompts], max_new_tokens=count))
    return list(np.stack(steps, axis=1)) if steps else []


def _prefill(model: SparseModel, reference: _Reference, name: str) -> Comparison:
    pairs = [
        (model.forward(window[None], np.ones((1, len(window)), np.int64))[0][0], expected)
        for window, expected in zip(reference.windows, reference.logits, strict=True)
    ]
    generated = [ids for p in reference.prompts for ids in _generate(model, [p], reference.options.greedy)]
    return reference.compare(name, pairs, generated)


def _token_by_token(model: SparseModel, reference: _Reference, name: str) -> Comparison:
    left = reference.options.tokens if reference.options.step_tokens is None else reference.options.step_tokens
    pairs = []
    for window, expected in zip(reference.windows, reference.logits, strict=True):
        count = min(left, len(window))
        left -= count
        cache: Cache | None = None
        rows = []
        for i in range(count):
            logits, cache = model.forward(window[None, i : i + 1], np.ones((1, i + 1), np.int64), cache)
            rows.append(logits[0, 0])
        if rows:
            pairs.append((np.stack(rows), expected[:count]))
    return reference.compare(name, pairs, [])


def _padded_batch(model: SparseModel, reference: _Reference, name: str) -> Comparison:
    prompts = reference.prompts
    width = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    logits, _ = model.forward(ids, mask)
    expected = reference.logits[0]
    pairs = [(logits[row, width - len(prompt) :], expected[: len(prompt)]) for row, prompt in enumerate(prompts)]
    return reference.compare(name, pairs, _generate(model, prompts, reference.options.greedy))


_RUNS: dict[str, Callable[[SparseModel, _Reference, str], Comparison]] = {
    "prefill in one go": _prefill,
    "token by token": _token_by_token,
    "batch of 3, left padded": _padded_batch,
}
