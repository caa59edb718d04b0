"""The reference's logits and greedy continuations: computed here or read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prosparse_export.analysis.cache_scales import LayerScales
from prosparse_export.errors import ProSparseError
from prosparse_export.export.rounded_cache import RoundedCache
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.runtime.model import SparseModel
from prosparse_export.text import Document, Window
from prosparse_export.validation.logit_file import LogitFile, LogitWriter
from prosparse_models import cache_argument, cache_of

__all__ = [
    "Continuation",
    "Reference",
    "artifact_forward",
    "fingerprint",
    "open_reference",
    "run_reference",
    "torch_forward",
]

Forward = Callable[[NDArray[np.int64], Any, bool], tuple[NDArray[np.float32], Any]]
"""(ids ``[tokens]``, cache or None, return a cache?) -> (logits ``[tokens, vocabulary]``, new cache or None)."""


@dataclass(frozen=True)
class Continuation:
    """A prompt and its greedy continuation by the reference.

    Attributes:
        ids: the prompt, ``[tokens]``.
        logits: its logits, ``[tokens, vocabulary]``.
        greedy: the continuation, ``[count]``.
        gaps: for each token of it, the distance between the two largest logits.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    greedy: NDArray[np.int64]
    gaps: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """Reference logits of a validation's text.

    Attributes:
        file: logits in window order.
        continuations: one per prompt.
        largest: the largest absolute logit.
        cache_rounding: see `cache_rounding`; 0 with a float32 KV cache.
    """

    file: LogitFile
    continuations: tuple[Continuation, ...]
    largest: float
    cache_rounding: float = 0.0

    def rows(self, windows: Sequence[Window]) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        """Yield each window with the logits of its tokens from `Window.first` on."""
        first = 0
        for window in windows:
            count = len(window.ids) - window.first
            yield window, self.file.logits(first, count)
            first += count


def fingerprint(
    windows: Sequence[Window],
    documents: Sequence[Document],
    sources: Mapping[str, str],
    overrides: Mapping[str, Any],
) -> dict[str, str]:
    """Return the metadata that a reference file must match.

    Args:
        windows: windows of the text.
        documents: the text.
        sources: SHA-256 of the model folder's files, by name.
        overrides: --activation and --threshold of the export.
    """
    cut = [[window.document, len(window.ids), window.first] for window in windows]
    return {
        "format": "prosparse reference 1",
        "texts": json.dumps({document.name: document.sha256 for document in documents}),
        "windows": json.dumps(cut),
        "model": json.dumps(dict(sources), sort_keys=True),
        "overrides": json.dumps(dict(overrides), sort_keys=True),
    }


def run_reference(
    forward: Forward,
    windows: Sequence[Window],
    prompts: Sequence[NDArray[np.int64]],
    greedy: int,
    metadata: Mapping[str, str],
    *,
    save_to: Path | None,
    scratch: Path,
    stage: str,
    progress: ProgressCallback,
) -> Reference:
    """Run a model over the windows and continue the prompts.

    Args:
        forward: the model; see `torch_forward`, `artifact_forward`.
        windows: windows of the text.
        prompts: prompts to continue, at least one.
        greedy: tokens to generate per prompt.
        metadata: from `fingerprint`.
        save_to: file to keep the logits in; None for a temporary file.
        scratch: folder of the temporary file.
        stage: name of the stage to report.
        progress: called with the tokens done.

    Raises:
        ProSparseError: the disk is too full for the logits.
    """
    total = sum(len(window.ids) for window in windows) + sum(len(prompt) + greedy for prompt in prompts)
    done = 0

    def more(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(stage, done, total)

    progress(stage, 0, total)
    continuations = [_continue(forward, prompt, greedy, more) for prompt in prompts]
    small: dict[str, NDArray[Any]] = {}
    for k, c in enumerate(continuations):
        parts: dict[str, NDArray[Any]] = {"ids": c.ids, "logits": c.logits, "greedy": c.greedy, "gaps": c.gaps}
        small |= {f"prompt.{k}.{name}": array for name, array in parts.items()}
    versions = {name: version(name) for name in ("torch", "transformers")}
    rows = sum(len(window.ids) - window.first for window in windows)
    writer = LogitWriter(save_to, scratch, {**metadata, **versions}, small, rows, int(continuations[0].logits.shape[1]))
    try:
        for window in windows:
            writer.add(forward(window.ids, None, False)[0][window.first :])
            more(len(window.ids))
        file = writer.finish()
    except BaseException:
        writer.discard()
        raise
    return _reference(file, continuations)


def open_reference(path: Path, metadata: Mapping[str, str], prompts: int, greedy: int) -> Reference:
    """Open a file written by ``--save-reference``.

    Raises:
        ProSparseError: the file is of another text, model or windows, or not a reference file.
    """
    file = LogitFile.open(path)
    differences = [
        ("model", "this model", "another one", "pass the model folder that the file was made from"),
        (
            "overrides",
            "this activation and threshold",
            "others",
            "validate the artifact that the file was made with, or write a new file with --save-reference",
        ),
        (
            "texts",
            "this text",
            "another text or tokenizer",
            "pass the --text and --max-tokens that the file was made with",
        ),
        (
            "windows",
            "these windows",
            "others",
            "pass the --context, --stride and --max-tokens that the file was made with",
        ),
    ]
    for key, what, got, hint in differences:
        if file.metadata.get(key) != metadata[key]:
            file.close()
            raise ProSparseError(f"reference: {path}: expected {what}, got {got}", hint=hint)
    continuations = []
    names = ("ids", "logits", "greedy", "gaps")
    try:
        for k in range(prompts):
            continuations.append(Continuation(*(file.tensor(f"prompt.{k}.{name}") for name in names)))
    except KeyError:
        file.close()
        raise ProSparseError(
            f"reference: {path}: expected {prompts} prompts, got {k}",
            hint="pass the --prompts that the file was made with",
        ) from None
    made = min(len(c.greedy) for c in continuations)
    if made < greedy:
        file.close()
        raise ProSparseError(
            f"reference: {path}: expected {greedy} greedy tokens per prompt, got {made}", hint=f"--greedy {made}"
        )
    return _reference(file, continuations)


def _reference(file: LogitFile, continuations: Sequence[Continuation]) -> Reference:
    largest, step = 0.0, 256
    for first in range(0, file.rows, step):
        rows = file.logits(first, min(step, file.rows - first))
        largest = float(np.maximum(largest, np.abs(rows).max()))
    return Reference(file, tuple(continuations), largest)


def torch_forward(model: PreTrainedModel, scales: Sequence[LayerScales] = ()) -> Forward:
    """Return ``model`` as a `Forward`; with ``scales``, from `cache_scales`, its KV cache is rounded to 8 bits."""

    def forward(ids: NDArray[np.int64], cache: Any, keep: bool) -> tuple[NDArray[np.float32], Any]:
        if scales and cache is None:
            cache = RoundedCache(scales)
        with quiet(), torch.no_grad():
            result = model(
                input_ids=torch.from_numpy(ids[None].copy()),
                **cache_argument(model, cache),
                use_cache=keep or bool(scales),
            )
        return result.logits[0].float().numpy(), cache_of(result) if keep else None

    return forward


def artifact_forward(model: SparseModel) -> Forward:
    """Return the artifact as a `Forward`."""

    def forward(ids: NDArray[np.int64], cache: Any, keep: bool) -> tuple[NDArray[np.float32], Any]:
        past = cache.length if cache is not None else 0
        logits, longer = model.forward(ids[None], np.ones((1, past + len(ids)), np.int64), cache)
        return logits[0], longer

    return forward


def _continue(
    forward: Forward, prompt: NDArray[np.int64], count: int, count_tokens: Callable[[int], None]
) -> Continuation:
    first, cache = forward(prompt, None, True)
    count_tokens(len(prompt))
    last = first[-1]
    tokens: list[int] = []
    gaps: list[float] = []
    while len(tokens) < count:
        two = np.argpartition(last, -2)[-2:]
        gaps.append(float(abs(last[two[1]] - last[two[0]])))
        tokens.append(int(last.argmax()))
        count_tokens(1)
        if len(tokens) < count:
            logits, cache = forward(np.asarray(tokens[-1:], np.int64), cache, True)
            last = logits[-1]
    return Continuation(prompt, first, np.asarray(tokens, np.int64), np.asarray(gaps, np.float32))
