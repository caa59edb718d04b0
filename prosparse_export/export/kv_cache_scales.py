"""Find the scales of an 8-bit KV cache on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from graph_passes.quantize_kv_cache import CACHE_LEVELS
from prosparse_export.artifact.model_settings import context_in
from prosparse_export.artifact.rounding_records import KvCacheRecord
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.text import BUNDLED, default_text, tokenize
from prosparse_models import Checkpoint, CheckpointError, cache_argument
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["CacheScales", "find_cache_scales"]

_FLOPS = 4e12  # about a minute on two cores
_LEAST_TOKENS, _MOST_TOKENS, _ROW = 512, 8192, 1024
_MARGIN = 1.0
_SMALLEST = 1e-3  # of a tensor's largest scale: for channels that are 0 on the text


@dataclass(frozen=True)
class CacheScales:
    """Scales of an 8-bit KV cache.

    Attributes:
        values: by name of the cache input, ``[kv_heads, head_dim]`` or ``[1]``.
        record: the manifest's record.
    """

    values: dict[str, NDArray[np.float32]]
    record: KvCacheRecord


@dataclass
class _Largest:
    """The largest value of each channel of one layer, ``[kv_heads, head_dim]``."""

    keys: torch.Tensor
    values: torch.Tensor


class _Observer(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """A KV cache that stays empty and keeps the largest value of every channel.

    RoPE turns a pair of a key's elements by an angle that depends on the position. Texts longer than the one observed
    bring other angles, so that both elements of a pair get the pair's largest length.
    """

    def __init__(self, rotated: Sequence[int]) -> None:
        super().__init__()
        self._rotated = rotated
        self.largest: dict[int, _Largest] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Observe keys and values ``[batch, kv_heads, tokens, head_dim]`` and return them."""
        keys = key_states.float().abs()
        if width := self._rotated[layer_idx]:
            half = width // 2
            length = torch.hypot(keys[..., :half], keys[..., half:width])
            keys = torch.cat([length, length, keys[..., width:]], -1)
        found = _Largest(keys.amax((0, 2)), value_states.float().abs().amax((0, 2)))
        known = self.largest.get(layer_idx, found)
        self.largest[layer_idx] = _Largest(
            torch.maximum(known.keys, found.keys), torch.maximum(known.values, found.values)
        )
        return key_states, value_states


@dataclass(frozen=True)
class _Text:
    rows: torch.Tensor  # [rows, tokens]
    texts: dict[str, str] = field(default_factory=dict)  # SHA-256 by name; empty for random tokens


@torch.no_grad()
def find_cache_scales(
    checkpoint: Checkpoint,
    folder: Path,
    texts: Sequence[tuple[str, str]],
    rotated: Mapping[str, int],
    progress: ProgressCallback,
) -> CacheScales:
    """Return scales that cover the keys and values of every layer: per channel, from text.

    Without a tokenizer the scales come from random tokens, which say less about single channels: one per tensor.

    Args:
        checkpoint: the model; its matrices may be in their files.
        folder: its folder, for the tokenizer.
        texts: (name, contents); the bundled text if empty.
        rotated: from `rotated_dims`, in order of the layers.
        progress: called with each stage.

    Raises:
        ProSparseError: the text cannot be used.
    """
    progress("KV cache scales", 0, 0)
    text = _text(checkpoint, folder, texts)
    observer = _Observer(list(rotated.values()))
    batch = len(text.rows) if checkpoint.weights is not None else 1  # in files: each pass reads all weights
    with quiet(), as_stored(checkpoint, {}):
        for first in range(0, len(text.rows), batch):
            progress("KV cache scales", first, len(text.rows))
            checkpoint.model.base_model(
                input_ids=text.rows[first : first + batch],
                **cache_argument(checkpoint.model.base_model, observer),
                use_cache=True,
            )
    per_channel = bool(text.texts)
    values = {}
    for layer, name in enumerate(rotated):
        found = observer.largest[layer]
        values[name] = _scale(found.keys, per_channel=per_channel)
        values[name.replace(".key", ".value")] = _scale(found.values, per_channel=per_channel)
    return CacheScales(
        values,
        KvCacheRecord("i8", "channel" if per_channel else "tensor", len(rotated), text.texts, text.rows.numel()),
    )


def _scale(largest: torch.Tensor, *, per_channel: bool) -> NDArray[np.float32]:
    values = largest.numpy().astype(np.float32)
    values = np.maximum(values, _SMALLEST * values.max())
    scale: NDArray[np.float32] = (values if per_channel else values.max(keepdims=True).reshape(1)) * np.float32(
        _MARGIN / CACHE_LEVELS
    )
    return np.where(scale > 0, scale, np.float32(1.0))


def _text(checkpoint: Checkpoint, folder: Path, texts: Sequence[tuple[str, str]]) -> _Text:
    model = checkpoint.model
    parameters = sum(p.numel() for p in model.parameters())
    wanted = int(min(max(_FLOPS / (2 * parameters), _LEAST_TOKENS), _MOST_TOKENS))
    row = min(_ROW, context_in(checkpoint.config) or _ROW)
    try:
        with quiet():
            tokenizer = load_tokenizer(folder)
    except (CheckpointError, OSError, ValueError, ImportError):
        vocabulary = int(model.config.get_text_config().vocab_size)
        ids = np.random.default_rng(0).integers(0, vocabulary, max(wanted // row, 1) * row)
        return _Text(torch.from_numpy(ids).reshape(-1, row))
    documents = tokenize(tokenizer, texts or [(BUNDLED, default_text())], wanted)
    every = torch.cat([torch.from_numpy(document.ids) for document in documents])
    row = min(row, len(every))
    return _Text(
        every[: len(every) // row * row].reshape(-1, row), {document.name: document.sha256 for document in documents}
    )
