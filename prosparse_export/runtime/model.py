"""Run an exported language model: logits, tokens, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.artifact.model_settings import (
    context_length,
    missing_tokenizer,
    read_tokenizer,
    stop_tokens,
)
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.cache import Cache, CacheInput, cache_inputs
from prosparse_export.runtime.decode_loop import Decoder, decode_tokens
from prosparse_export.runtime.detokenizer import Detokenizer, stop_strings
from prosparse_export.runtime.sampling import GREEDY, Sampler, Sampling
from prosparse_export.runtime.session import open_session

__all__ = ["SparseModel", "load"]

_ENCODER_DECODER = "prosparse_export.runtime.encoder_decoder.EncoderDecoder"


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    spinning: bool = True,
    library: bool = True,
    verify: bool = False,
    session_options: onnxruntime.SessionOptions | None = None,
) -> SparseModel:
    """Open an exported model; see `SparseModel.open`."""
    return SparseModel.open(
        path, threads=threads, spinning=spinning, library=library, verify=verify, session_options=session_options
    )


@dataclass(frozen=True)
class SparseModel:
    """An exported language model in an onnxruntime session.

    Attributes:
        session: the session.
        path: the graph's file.
        tokenizer: from tokenizer.json next to it, or None.
        stop: token ids that end a sequence.
        context: maximum number of tokens in a sequence, prompt included (max_position_embeddings); None if unknown.
        in_place: the KV cache can stay in one buffer, because every attention is fused.
    """

    session: onnxruntime.InferenceSession
    path: Path
    tokenizer: Tokenizer | None
    stop: frozenset[int]
    context: int | None
    in_place: bool
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
        session_options: onnxruntime.SessionOptions | None = None,
        encoder_decoder: bool = False,
    ) -> SparseModel:
        """Open ``path``.

        Args:
            path: an .onnx file from ``prosparse-export``.
            threads: intra-op threads; None for one per physical core available to the process.
            spinning: idle threads spin. Without it they sleep between operators, which is slower but leaves the
                cores to other processes.
            library: register the sparse kernels. Without them the operators' function bodies run, and narrow weights
                of more than 512 MB on disk are converted to float32 in every call.
            verify: compare the SHA-256 of graph and weights with prosparse.json; by default, only sizes are checked.
            session_options: your own options; ``threads`` then defaults to theirs, and ``spinning`` has no effect.
            encoder_decoder: accept the decoder of an encoder-decoder; see `EncoderDecoder`.

        Raises:
            ProSparseError: a file is missing or damaged, or onnxruntime cannot open it.
        """
        path = Path(path)
        session = open_session(
            path, threads=threads, spinning=spinning, library=library, verify=verify, session_options=session_options
        )
        if not encoder_decoder and any(v.name == "encoder_attention_mask" for v in session.get_inputs()):
            raise ProSparseError(
                f"model: {path}: expected a decoder-only model or an encoder, got the decoder of an encoder-decoder",
                hint=f"run it with `prosparse generate`, or in Python with {_ENCODER_DECODER}",
            )
        folder, manifest = path.parent, read_manifest(path)
        in_place = manifest is not None and manifest.fused_attention
        return cls(
            session=session,
            path=path,
            tokenizer=read_tokenizer(folder),
            stop=stop_tokens(folder),
            context=context_length(folder),
            in_place=in_place,
            _past=cache_inputs(session),
        )

    def decoder(self, batch: int, capacity: int) -> Decoder:
        """Return a decode loop for ``batch`` sequences of at most ``capacity`` tokens each, limited by the context.

        Raises:
            ProSparseError: the model has no KV cache, so it is not a decoder.
        """
        self._check_cache()
        capacity = min(capacity, self.context or capacity)
        return Decoder(self.session, self.path, batch=batch, capacity=capacity, in_place=self.in_place)

    def _check_cache(self) -> None:
        if not self._past:
            manifest = read_manifest(self.path)
            if manifest is not None and manifest.source.kind == "onnx_file":
                inputs = ", ".join(value.name for value in self.session.get_inputs())
                raise ProSparseError(
                    f"model: {self.path}: expected an exported decoder with a KV cache, got a file from "
                    f"`prosparse optimize` with the inputs {inputs}",
                    hint="run it in an onnxruntime session (docs/guides/deploy.md), or export its model folder with "
                    "prosparse-export",
                )
            raise ProSparseError(
                f"model: {self.path}: expected a decoder with a KV cache, got a model without one",
                hint="this is an encoder: call forward() for its hidden states",
            )

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: Cache | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """Compute logits ``[batch, sequence, vocabulary]`` (of an encoder: hidden states) and the extended cache.

        Args:
            ids: new tokens, ``[batch, sequence]``.
            mask: 1 for a token, 0 for padding on the left, ``[batch, past + sequence]``.
            cache: returned for the past tokens; None if there are none.

        Raises:
            ProSparseError: onnxruntime fails, for example because of the shapes.
        """
        cache = cache or Cache.empty(self._past, len(ids))
        if self.in_place and len(ids) > 1 and ids.shape[1] > 1 and cache.length > 0:
            # without our library, onnxruntime's operator continues a batch by one token only
            rows = [self.forward(ids[i : i + 1], mask[i : i + 1], cache.row(i)) for i in range(len(ids))]
            return np.concatenate([logits for logits, _ in rows]), Cache.stacked([longer for _, longer in rows])
        positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, cache.length :]
        past = {name: self._past[name].with_room(array, ids.shape[1]) for name, array in cache.values.items()}
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        wanted = {value.name for value in self.session.get_inputs()}
        try:
            logits, *present = self.session.run(None, {n: v for n, v in feeds.items() if n in wanted})
            present = present[: len(self._past)]  # an encoder has no cache, but may have a pooled output
        except Exception as error:  # onnxruntime's exceptions have no common base class
            hint = "check shapes and dtypes: ids [batch, sequence], mask [batch, past + sequence], both int64"
            if self.context is not None and mask.shape[1] > self.context:
                hint = f"shorten the text to {self.context} tokens, padding included (got {mask.shape[1]})"
            raise ProSparseError(f"model: {self.path}: {' '.join(str(error).split())}", hint=hint) from error
        return logits, Cache(dict(zip(self._past, present, strict=True)))

    def stream(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int | None = 64, sampling: Sampling = GREEDY
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the next token of every prompt, ``[batch]``, until all sequences have ended.

        A sequence that has ended repeats its last token; see `stop`. Calls share no state, so they may run in several
        threads.

        Args:
            prompts: token ids; shorter prompts are padded on the left.
            max_new_tokens: maximum number of steps; None for as many as fit into the context.
            sampling: how tokens are chosen; greedy by default.

        Raises:
            ProSparseError: a prompt is empty, the sequences do not fit into the context, or the model is not a decoder.
        """
        self._check_cache()
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise ProSparseError("prompt: expected at least one token", hint="enter some text to continue")
        width = max(len(prompt) for prompt in prompts)
        count = self._new_tokens(width, max_new_tokens)
        decoder = self.decoder(len(prompts), width + count)
        return decode_tokens(decoder, Sampler(sampling, len(prompts)), prompts, count, self.stop)

    def _new_tokens(self, width: int, count: int | None) -> int:
        """Return the number of steps for prompts of ``width`` tokens."""
        if count is None:
            if self.context is None:
                raise ProSparseError(
                    f"max_new_tokens: {self.path.parent / 'config.json'} has no max_position_embeddings",
                    hint="set max_new_tokens to a number",
                )
            count = max(self.context - width, 1)
        if count < 1:
            raise ProSparseError(
                f"max_new_tokens: expected at least 1, got {count}", hint="set max_new_tokens to a positive number"
            )
        if self.context is not None and width + count > self.context:
            left = self.context - width
            raise ProSparseError(
                f"context: expected at most {self.context} tokens, got {width} in the prompt and {count} new ones",
                hint=f"set max_new_tokens (-n) to at most {left}" if left > 0 else "shorten the prompt",
            )
        return count

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 64,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
    ) -> str:
        """Return the continuation of ``prompt``; see `stream_text`."""
        return "".join(self.stream_text(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop))

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = 64,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
    ) -> list[str]:
        """Return the continuations of ``prompts``, computed in one batch; see `stream_text`."""
        texts = [""] * len(prompts)
        for pieces in self._pieces(prompts, max_new_tokens, sampling, stop):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts

    def stream_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 64,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
        special_tokens: bool = True,
    ) -> Iterator[str]:
        """Yield the continuation of ``prompt`` in pieces, one per token.

        A piece never splits a character, and never shows what may be the beginning of a stop string. It may therefore
        be empty, with its text in a later piece.

        Args:
            prompt: text.
            max_new_tokens: maximum number of tokens; None for as many as fit into the context.
            sampling: how tokens are chosen; greedy by default.
            stop: strings that end the text, in addition to the model's end tokens; they are not yielded.
            special_tokens: the tokenizer adds its special tokens; a chat template has written them already.

        Raises:
            ProSparseError: there is no tokenizer, or as for `stream`.
        """
        return (piece for (piece,) in self._pieces([prompt], max_new_tokens, sampling, stop, special_tokens))

    def _pieces(
        self,
        prompts: Sequence[str],
        count: int | None,
        sampling: Sampling,
        stop: str | Sequence[str],
        special_tokens: bool = True,
    ) -> Iterator[list[str]]:
        """Check the arguments, then return an iterator over the next piece of every text."""
        self._check_cache()
        if self.tokenizer is None:
            raise missing_tokenizer(self.path.parent)
        texts = [Detokenizer(self.tokenizer, stop_strings(stop)) for _ in prompts]
        if any(not prompt for prompt in prompts):  # the tokenizer may turn an empty text into a start token
            raise ProSparseError("prompt: expected some text, got an empty string", hint="enter some text to continue")
        ids = [self.tokenizer.encode(prompt, add_special_tokens=special_tokens).ids for prompt in prompts]
        return self._decoded(self.stream(ids, max_new_tokens=count, sampling=sampling), texts)

    def _decoded(self, tokens: Iterator[NDArray[np.int64]], texts: list[Detokenizer]) -> Iterator[list[str]]:
        for row in tokens:
            yield [
                text.end() if int(token) in self.stop else text.add(int(token))
                for text, token in zip(texts, row, strict=True)
            ]
            if all(text.ended for text in texts):
                return
        if any(rest := [text.end() for text in texts]):
            yield rest
