"""Measure the mean square of every linear layer's input channels: how much an error of each column matters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from prosparse_export.artifact.model_settings import context_in
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.text import BUNDLED, Document, default_text, tokenize
from prosparse_models import Checkpoint, CheckpointError
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["InputMoments", "calibration_documents", "input_moments", "relative_importance", "token_rows"]

_FLOPS = 1.5e12  # about 20 seconds on two cores
_LEAST_TOKENS, _MOST_TOKENS, _ROW = 256, 1024, 256  # SmolLM2 in i4: KL grows by 1 % from 4,096 tokens to 256
_PAIR_TOKENS = 8192  # to measure how inputs vary together
_FLOOR = 1e-3  # of the mean: channels that this text does not use may matter in another


@dataclass(frozen=True)
class InputMoments:
    """Statistics of a model's linear layers on text.

    Attributes:
        by_module: mean square of each input channel, ``[d_in]``, relative to their mean, by module path.
        documents: the text.
        tokens: tokens measured.
    """

    by_module: dict[str, NDArray[np.float32]]
    documents: tuple[Document, ...]
    tokens: int


class _MeasuredError(Exception):
    """Ends a forward pass before lm_head computes."""


def _affordable_tokens(checkpoint: Checkpoint) -> int:
    """Return how many tokens a model runs in about 20 seconds: 256 to 1,024."""
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    return int(min(max(_FLOPS / (2 * parameters), _LEAST_TOKENS), _MOST_TOKENS))


def calibration_documents(
    checkpoint: Checkpoint, folder: Path, texts: Sequence[tuple[str, str]], *, compensates: bool = False
) -> tuple[Document, ...] | None:
    """Return the text to measure on, tokenized.

    Args:
        checkpoint: the model.
        folder: its folder, for the tokenizer.
        texts: (name, contents); if empty, the last third of the bundled text, which `prosparse validate` does not
            reach by default.
        compensates: take up to 8,192 tokens however long that takes: moments of pairs need them.

    Returns:
        The text; None without ``texts`` if the folder has no tokenizer that fits the model.

    Raises:
        ProSparseError: a text of ``texts`` cannot be used.
    """
    wanted = _PAIR_TOKENS if compensates else _affordable_tokens(checkpoint)
    given = list(texts)
    if not given:
        bundled = default_text()
        given = [(f"{BUNDLED}, last third", bundled[len(bundled) * 2 // 3 :])]
    try:
        with quiet():
            documents = tokenize(load_tokenizer(folder), given, wanted)
    except (CheckpointError, OSError, ValueError, ImportError):
        if texts:
            raise
        return None
    vocabulary = int(checkpoint.model.config.get_text_config().vocab_size)
    if not texts and any(document.ids.max() >= vocabulary for document in documents):
        return None
    return tuple(documents)


@torch.no_grad()
def input_moments(checkpoint: Checkpoint, documents: Sequence[Document], progress: ProgressCallback) -> InputMoments:
    """Run a model over text and return the mean square of each linear layer's input channels.

    Args:
        checkpoint: the model; its matrices may be in their files.
        documents: the text.
        progress: called with each stage.
    """
    model = checkpoint.model
    sums: dict[str, torch.Tensor] = {}

    last = model.get_output_embeddings()

    def adding(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, torch.zeros(x.shape[-1])) + x.square().sum(0)
            if module is last:  # what it computes is not needed
                raise _MeasuredError

        return hook

    handles = [
        module.register_forward_pre_hook(adding(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    rows = [torch.from_numpy(row) for row in token_rows(documents, checkpoint.config)]
    at_once = len(rows) if checkpoint.weights is not None else 1  # weights in files are read once
    try:
        with quiet(), as_stored(checkpoint, {}):
            for first in range(0, len(rows), at_once):
                progress("measure inputs", first, len(rows))
                with contextlib.suppress(_MeasuredError):
                    model(input_ids=torch.stack(rows[first : first + at_once]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = {
        name: relative_importance(total) for name, total in sums.items() if torch.isfinite(total).all() and total.any()
    }
    by_weight = {model.get_submodule(name).weight: value for name, value in found.items()}
    for name, module in model.named_modules():  # the embedding, if lm_head has the same matrix
        weight = module._parameters.get("weight")
        if name not in found and weight is not None and weight in by_weight:
            found[name] = by_weight[weight]
    return InputMoments(found, tuple(documents), sum(row.numel() for row in rows))


def token_rows(documents: Sequence[Document], config: Mapping[str, Any]) -> list[NDArray[np.int64]]:
    """Cut the text into rows of equal length, at most 256 tokens, so that they can run as a batch.

    Args:
        documents: the text.
        config: config.json, whose context length may be shorter.
    """
    ids = np.concatenate([document.ids for document in documents])
    length = min(_ROW, context_in(config) or _ROW, len(ids))
    return list(ids[: len(ids) // length * length].reshape(-1, length))


def relative_importance(total: torch.Tensor) -> NDArray[np.float32]:
    """Return the weight of each column's squared error, ``[d_in]``, from sums of its input's squares."""
    relative: NDArray[np.float32] = (total / total.mean().clamp(min=1e-30) + _FLOOR).numpy().astype(np.float32)
    return relative
