"""Compare a staged artifact with PyTorch, so that an artifact that computes something else is never published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prosparse_export.analysis.cache_scales import cache_scales
from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.artifact.manifest import Manifest
from prosparse_export.artifact.model_settings import context_in
from prosparse_export.errors import ProSparseError
from prosparse_export.export.malloc_trim import give_back
from prosparse_export.export.rounded_cache import RoundedCache, cache_rounding
from prosparse_export.export.rounded_reference import (
    as_stored,
    format_bound,
    stored_formats,
    threshold_crossings,
    with_stored_weights,
)
from prosparse_export.quiet import quiet
from prosparse_export.runtime.encoder_decoder import EncoderDecoder
from prosparse_export.runtime.model import SparseModel
from prosparse_models import Checkpoint, cache_argument

__all__ = ["check_logits"]

_TOKENS, _SOURCE, _TARGET = 16, 9, 6  # of a decoder; of an encoder-decoder
_BOUND = 1e-3  # relative to the largest logit; `prosparse validate` measures on real text


@torch.no_grad()
def check_logits(checkpoint: Checkpoint, path: Path, manifest: Manifest, *, library: bool) -> None:
    """Compare logits on random tokens with PyTorch's, computed with the weights as stored.

    Args:
        checkpoint: the model that was exported; its weights are rounded in place.
        path: the artifact.
        manifest: its manifest.
        library: run with the operator library.

    Raises:
        ProSparseError: they differ beyond rounding.
    """
    formats = stored_formats(manifest, path)
    if manifest.encoder is not None:
        with_stored_weights(checkpoint.model, formats)
        pairs = _encoder_decoder(checkpoint.model, path, library=library)
    else:
        with quiet(), as_stored(checkpoint, formats):
            pairs = _decoder(checkpoint, path, library=library)
    for what, actual, expected, rounding in pairs:
        largest = max(1.0, float(np.abs(expected).max()))
        bound = max(_BOUND * largest, format_bound(formats, largest, _crossings(manifest), manifest.accuracy_level))
        bound += rounding
        difference = float(np.abs(actual - expected).max())
        if not difference <= bound:
            raise ProSparseError(
                f"check: {what} differ from PyTorch's: expected at most {bound:g}, got {difference:g}",
                hint=_hint(manifest),
            )


def _crossings(manifest: Manifest) -> float:
    """Return `threshold_crossings` of a decoder; their rate was derived for decoders only."""
    return threshold_crossings(manifest) if manifest.encoder is None else 0.0


def _hint(manifest: Manifest) -> str:
    if manifest.fused_attention:
        return "please report this model; --attention unfused may help"
    return "please report this model and its config.json"


_Pair = tuple[str, NDArray[Any], NDArray[Any], float]
"""What is compared, the artifact's values, PyTorch's, and `cache_rounding`."""


def _decoder(checkpoint: Checkpoint, path: Path, *, library: bool) -> list[_Pair]:
    vocabulary = int(checkpoint.model.config.get_text_config().vocab_size)
    tokens = min(_TOKENS, context_in(checkpoint.config) or _TOKENS)
    ids = np.random.default_rng(0).integers(0, vocabulary, size=(1, tokens))
    expected, rounding = _first_output(checkpoint.model, ids), 0.0
    if scales := cache_scales(read_graph(path), path.parent):
        unrounded = expected
        expected = _first_output(checkpoint.model, ids, RoundedCache(scales))
        rounding = cache_rounding(expected, unrounded)
    give_back()
    actual, _ = SparseModel.open(path, library=library).forward(ids, np.ones_like(ids))
    return [("logits", actual, expected, rounding)]


def _first_output(
    model: PreTrainedModel, ids: NDArray[np.int64], cache: RoundedCache | None = None
) -> NDArray[np.float32]:
    cached = {} if cache is None else {**cache_argument(model, cache), "use_cache": True}
    output: torch.Tensor = next(iter(model(input_ids=torch.from_numpy(ids), **cached).values()))
    return output.float().numpy()


def _encoder_decoder(model: PreTrainedModel, path: Path, *, library: bool) -> list[_Pair]:
    """Run two texts, one of them padded: first several target tokens at once, then one."""
    rng = np.random.default_rng(0)
    ids, tokens = (rng.integers(3, int(model.config.vocab_size), (2, length)) for length in (_SOURCE, _TARGET))
    mask = np.ones_like(ids)
    pad = getattr(model.config, "pad_token_id", None) or 0
    mask[1, -2:], ids[1, -2:] = 0, pad
    with quiet():
        feeds = {"attention_mask": torch.from_numpy(mask), "decoder_input_ids": torch.from_numpy(tokens)}
        encoder = model.get_encoder()
        states = encoder(input_ids=torch.from_numpy(ids), attention_mask=feeds["attention_mask"]).last_hidden_state
        wanted = model(encoder_outputs=BaseModelOutput(last_hidden_state=states), **feeds, use_cache=False).logits
    artifact = EncoderDecoder.open(path, library=library)
    source = artifact.encode(ids, mask)
    first, cache = artifact.forward(tokens[:, :-1], source)
    last, _ = artifact.forward(tokens[:, -1:], source, cache)
    return [
        ("hidden states", source.states[mask == 1], states.float().numpy()[mask == 1], 0.0),
        ("logits", np.concatenate([first, last], 1), wanted.float().numpy(), 0.0),
    ]
