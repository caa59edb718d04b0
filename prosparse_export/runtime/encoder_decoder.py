"""Run an exported encoder-decoder: two graphs in onnxruntime and a KV cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.artifact.model_settings import missing_tokenizer, read_settings
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.cache import Cache, CacheInput, cache_inputs
from prosparse_export.runtime.detokenizer import Detokenizer, stop_strings
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.sampling import GREEDY, Sampler, Sampling
from prosparse_export.runtime.session import open_session

__all__ = ["EncoderDecoder", "Source", "encoder_path"]


def encoder_path(path: Path) -> Path:
    """Return the path of the encoder for the decoder ``path``: ``t5.encoder.onnx`` for ``t5.onnx``."""
    return path.with_name(f"{path.stem}.encoder.onnx")


@dataclass(frozen=True)
class Source:
    """An encoded text.

    Attributes:
        states: the encoder's last hidden states, ``[batch, source, d_model]``.
        mask: 1 for a token, 0 for padding on either side, ``[batch, source]``.
        values: keys and values of the cross-attention by the decoder's input names, ``[batch, heads, source, dim]``.
    """

    states: NDArray[np.float32]
    mask: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class EncoderDecoder:
    """An exported encoder-decoder.

    Attributes:
        encoder: session of the encoder.
        decoder: session of the decoder.
        path: the decoder's file.
        tokenizer: from tokenizer.json next to it, or None.
        start: first token ids of an output: decoder_start_token_id, forced_bos_token_id.
        stop: token ids that end an output.
        pad: token id of padding.
    """

    encoder: onnxruntime.InferenceSession
    decoder: onnxruntime.InferenceSession
    path: Path
    tokenizer: Tokenizer | None
    start: tuple[int, ...]
    stop: frozenset[int]
    pad: int
    _past: dict[str, CacheInput] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        spinning: bool = True,
        library: bool = True,
        verify: bool = False,
    ) -> EncoderDecoder:
        """Open the decoder ``path`` and the encoder next to it.

        Args:
            path: an .onnx file from ``prosparse-export``.
            threads: intra-op threads, as for `SparseModel.open`.
            spinning: idle threads spin.
            library: register the sparse kernels; without them the operators' function bodies run.
            verify: compare the SHA-256 of all files with prosparse.json.

        Raises:
            ProSparseError: a file is missing or damaged, or onnxruntime cannot run it.
        """
        path = Path(path)
        common: dict[str, Any] = {"threads": threads, "spinning": spinning, "library": library}
        decoder = SparseModel.open(path, verify=verify, encoder_decoder=True, **common)
        encoder = open_session(encoder_path(path), **common)
        start, pad = _special_tokens(path.parent)
        past = cache_inputs(decoder.session, ".decoder.")
        return cls(encoder, decoder.session, path, decoder.tokenizer, start, decoder.stop, pad, past)

    def encode(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Source:
        """Encode tokens ``[batch, source]``; ``mask`` is 0 for padding on either side.

        Raises:
            ProSparseError: onnxruntime fails, for example because of the shapes.
        """
        names = [output.name for output in self.encoder.get_outputs()]
        outputs = _run(self.encoder, encoder_path(self.path), {"input_ids": ids, "attention_mask": mask})
        named = dict(zip(names, outputs, strict=True))
        states = named.pop("last_hidden_state")
        return Source(states, mask, {name.replace("present", "past_key_values"): v for name, v in named.items()})

    def forward(
        self, ids: NDArray[np.int64], source: Source, cache: Cache | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """Compute logits ``[batch, sequence, vocabulary]`` of output tokens and the extended cache.

        Raises:
            ProSparseError: onnxruntime fails, for example because of the shapes.
        """
        cache = cache or Cache.empty(self._past, len(ids))
        feeds: dict[str, NDArray[Any]] = {"input_ids": ids, "encoder_attention_mask": source.mask}
        feeds.update(source.values)
        feeds.update(cache.values)
        wanted = {value.name for value in self.decoder.get_inputs()}
        logits, *present = _run(self.decoder, self.path, {n: v for n, v in feeds.items() if n in wanted})
        return logits, Cache(dict(zip(self._past, present, strict=True)))

    def stream(
        self, sources: Sequence[Sequence[int]], *, max_new_tokens: int | None = 64, sampling: Sampling = GREEDY
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the next output token of every source, ``[batch]``, until all have ended; `start` is not yielded.

        An output that has ended repeats its last token; see `stop`.

        Args:
            sources: token ids, with the end token that the model expects; shorter sources are padded on the right.
            max_new_tokens: maximum number of steps; None for no limit.
            sampling: how tokens are chosen; greedy by default.

        Raises:
            ProSparseError: a source is empty.
        """
        if not sources or any(len(source) == 0 for source in sources):
            raise ProSparseError("source: expected at least one token", hint="enter some text")
        ids = np.full((len(sources), max(map(len, sources))), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, source in enumerate(sources):
            ids[row, : len(source)], mask[row, : len(source)] = source, 1
        sampler = Sampler(sampling, len(sources))
        encoded = self.encode(ids, mask)
        tokens = np.tile(np.array(self.start, np.int64), (len(sources), 1))
        cache: Cache | None = None
        ended = np.zeros(len(sources), bool)
        last = np.zeros(len(sources), np.int64)
        for _ in itertools.count() if max_new_tokens is None else range(max_new_tokens):
            logits, cache = self.forward(tokens, encoded, cache)
            last = np.where(ended, last, sampler.choose(logits[:, -1]))
            yield last
            ended |= np.isin(last, list(self.stop))
            if ended.all():
                return
            tokens = last[:, None]

    def stream_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 64,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield the output for ``prompt`` in pieces, one per token; see `SparseModel.stream_text`."""
        if self.tokenizer is None:
            raise missing_tokenizer(self.path.parent)
        source = self.tokenizer.encode(prompt).ids
        text = Detokenizer(self.tokenizer, stop_strings(stop))
        for (token,) in self.stream([source], max_new_tokens=max_new_tokens, sampling=sampling):
            if int(token) in self.stop:
                break
            yield text.add(int(token))
            if text.ended:
                return
        if rest := text.end():
            yield rest


def _special_tokens(folder: Path) -> tuple[tuple[int, ...], int]:
    """Return the first tokens of an output and the padding token; generation_config.json overrides config.json."""
    settings: dict[str, object] = {}
    for name in ("config.json", "generation_config.json"):
        values = read_settings(folder / name)
        settings.update({key: value for key, value in values.items() if value is not None})
    first = (settings.get("decoder_start_token_id", 0), settings.get("forced_bos_token_id"))
    pad = settings.get("pad_token_id")
    return tuple(int(token) for token in first if isinstance(token, int)), pad if isinstance(pad, int) else 0


def _run(
    session: onnxruntime.InferenceSession, path: Path, feeds: dict[str, NDArray[Any]]
) -> list[NDArray[np.float32]]:
    try:
        outputs: list[NDArray[np.float32]] = session.run(None, feeds)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ProSparseError(
            f"model: {path}: {' '.join(str(error).split())}",
            hint="token ids must be below vocab_size; ids and mask must both be [batch, tokens]",
        ) from error
    return outputs
