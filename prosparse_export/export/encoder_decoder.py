"""Export an encoder-decoder (T5, M2M-100): two graphs, one folder, all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from graph_passes import FfnFormat, FfnOutcome, export_pipeline
from prosparse_export.artifact.writer import Sidecars, write_artifact
from prosparse_export.errors import ProSparseError
from prosparse_export.export.rounded_reference import StoredAs, format_bound, with_stored_weights
from prosparse_export.export.trace_encoder_decoder import trace_encoder_decoder
from prosparse_export.progress import ProgressCallback
from prosparse_export.quiet import quiet
from prosparse_export.runtime.encoder_decoder import EncoderDecoder, encoder_path

__all__ = ["check_encoder_decoder", "rewrite_encoder_decoder", "write_encoder"]

_SOURCE, _TARGET = 9, 6
_BOUND = 1e-3  # of the largest number


def rewrite_encoder_decoder(
    model: PreTrainedModel, weights: FfnFormat, *, decomposed: bool, progress: ProgressCallback
) -> tuple[ir.Model, ir.Model, list[FfnOutcome]]:
    """Return the graphs of encoder and decoder, their blocks rewritten, and what became of each block.

    Attention stays as traced, and its matrices float32.

    Raises:
        ProSparseError: the model cannot be traced.
    """
    progress("trace", 0, 0)
    graphs = trace_encoder_decoder(model)
    progress("rewrite", 0, 0)
    outcomes: list[FfnOutcome] = []
    for graph in graphs:
        export_pipeline(outcomes, fuse_attention=False, weights=weights, decomposed=decomposed)(graph)
    return (*graphs, outcomes)


def write_encoder(encoder: ir.Model, staging: Path, name: str, progress: ProgressCallback) -> None:
    """Write the encoder's graph beside the decoder's, ``name``."""
    target = encoder_path(staging / name).name
    write_artifact(encoder, staging, target, Sidecars(), progress)


@torch.no_grad()
def check_encoder_decoder(
    model: PreTrainedModel, path: Path, formats: dict[str, StoredAs], *, uses_library: bool
) -> None:
    """Compare hidden states and logits with PyTorch's: two texts, one padded; some tokens at once, then one.

    Raises:
        ProSparseError: they differ beyond rounding.
    """
    with_stored_weights(model, formats)
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.vocab_size)
    ids, tokens = (rng.integers(3, vocabulary, (2, length)) for length in (_SOURCE, _TARGET))
    mask = np.ones_like(ids)
    pad = getattr(model.config, "pad_token_id", None) or 0
    mask[1, -2:], ids[1, -2:] = 0, pad
    with quiet():
        feeds = {"attention_mask": torch.from_numpy(mask), "decoder_input_ids": torch.from_numpy(tokens)}
        states = model.get_encoder()(
            input_ids=torch.from_numpy(ids), attention_mask=feeds["attention_mask"]
        ).last_hidden_state
        wanted = model(encoder_outputs=BaseModelOutput(last_hidden_state=states), **feeds, use_cache=False).logits
    artifact = EncoderDecoder.open(path, library=uses_library)
    source = artifact.encode(ids, mask)
    first, cache = artifact.forward(tokens[:, :-1], source)
    last, _ = artifact.forward(tokens[:, -1:], source, cache)
    pairs: list[tuple[str, NDArray[Any], NDArray[Any]]] = [
        ("hidden states", source.states[mask == 1], states.float().numpy()[mask == 1]),
        ("logits", np.concatenate([first, last], 1), wanted.float().numpy()),
    ]
    for what, actual, expected in pairs:
        largest = max(1.0, float(np.abs(expected).max()))
        bound = max(_BOUND * largest, format_bound(formats, largest))
        difference = float(np.abs(actual - expected).max())
        if not difference <= bound:
            raise ProSparseError(
                f"check: {what} differ from PyTorch's: expected at most {bound:g}, got {difference:g}",
                hint="please report this model",
            )
