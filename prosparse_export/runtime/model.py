"""Run an artifact: onnxruntime, a KV cache, and nothing of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.artifact.integrity import check_files, missing_model
from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.artifact.model_settings import context_length, read_tokenizer, stop_tokens
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.decode_loop import Decoder
from prosparse_export.runtime.detokenizer import TextStream
from prosparse_export.runtime.operator_library import disabled_optimizers, register
from prosparse_export.runtime.sampling import Sampler, Sampling
from prosparse_export.runtime.threads import default_threads

__all__ = ["Cache", "SparseModel", "load"]


@dataclass(frozen=True)
class Cache:
    """Keys and values of all past tokens, by input name, each ``[batch, kv_heads, past, head_dim]``."""

    values: dict[str, NDArray[np.float32]]

    @classmethod
    def empty(cls, sizes: Mapping[str, tuple[int, int]], batch: int) -> Cache:
        """Return the cache of no tokens; ``sizes`` are KV heads and head_dim by input name."""
        return cls({name: np.zeros((batch, heads, 0, dim), np.float32) for name, (heads, dim) in sizes.items()})

    @property
    def length(self) -> int:
        """Past tokens, padding included."""
        return next(iter(self.values.values())).shape[2] if self.values else 0


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
        tokenizer: from tokenizer.json beside it, or None.
        stop: token ids that end a text.
        context: most tokens of a text, prompt included (config.json's max_position_embeddings); None if unknown.
        in_place: the KV cache can stay in one buffer: all attentions are GroupQueryAttention.
    """

    session: onnxruntime.InferenceSession
    path: Path
    tokenizer: Tokenizer | None
    stop: frozenset[int]
    context: int | None
    in_place: bool
    _past: dict[str, tuple[int, int]] = field(repr=False)

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
            threads: intra-op threads; None for one per physical core that the process may use.
            spinning: threads wait for the next operator awake; without, they sleep in between: slower, and a
                waiting thread takes nothing from other processes.
            library: register the sparse kernels; without them the operators' ONNX bodies run, and weights beyond
                512 MB on disk that are narrower than float32 are widened in every call, not once: slow, but it fits.
            verify: read graph and weights first and compare their SHA-256 with prosparse.json; else sizes only.
            session_options: options of your own; ``threads`` (if None) and ``spinning`` then change nothing in them.
            encoder_decoder: the decoder of an encoder-decoder is welcome; see encoder_decoder.py.

        Raises:
            ProSparseError: a file is missing or damaged, or onnxruntime cannot run it.
        """
        path = Path(path)
        if not path.is_file():
            raise missing_model(path)
        check_files(path, verify=verify)
        options = session_options or onnxruntime.SessionOptions()
        if session_options is None:
            options.log_severity_level = 3  # errors
            options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
            threads = threads or default_threads()
        if threads is not None:
            options.intra_op_num_threads = threads
        if library:
            register(options)
        manifest = read_manifest(path)
        disabled = disabled_optimizers(path, manifest, library=library)
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            data = path.with_name(f"{path.name}.data")
            hint = "prosparse.json beside it names the onnxruntime that it needs; export a damaged file again"
            if data.name in str(error) and not data.is_file():
                hint = f"its weights lie in {data.name}, which is not there: an artifact is all of its folder"
            raise ProSparseError(
                f"model: {path}: onnxruntime {onnxruntime.__version__} cannot open it: {' '.join(str(error).split())}",
                hint=hint,
            ) from error
        if not encoder_decoder and any(v.name == "encoder_attention_mask" for v in session.get_inputs()):
            raise ProSparseError(
                f"model: {path}: expected a decoder alone or an encoder, got the decoder of an encoder-decoder",
                hint="`prosparse generate` runs it; in Python, runtime.encoder_decoder.EncoderDecoder does",
            )
        past = {
            value.name: (int(value.shape[1]), int(value.shape[3]))
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        folder = path.parent
        in_place = manifest is not None and manifest.fused_attention
        return cls(session, path, read_tokenizer(folder), stop_tokens(folder), context_length(folder), in_place, past)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        """Return the inner loop for ``batch`` texts of at most ``capacity`` tokens each, or as the model's context has.

        Raises:
            ProSparseError: the model has no cache, so that it is no decoder.
        """
        self._check_cache()
        capacity = min(capacity, self.context or capacity)
        return Decoder(self.session, self.path, batch=batch, capacity=capacity, in_place=self.in_place)

    def _check_cache(self) -> None:
        if not self._past:
            raise ProSparseError(
                f"model: {self.path}: expected a decoder with a KV cache, got a model without one",
                hint="an encoder computes hidden states: call forward()",
            )

    def forward(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: Cache | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """Compute logits ``[batch, sequence, vocabulary]`` (an encoder: hidden states) and the longer cache.

        Args:
            ids: new tokens, ``[batch, sequence]``.
            mask: 1 for a token, 0 for padding on the left, ``[batch, past + sequence]``.
            cache: what the tokens before gave; None at the beginning.

        Raises:
            ProSparseError: onnxruntime refuses the shapes.
        """
        cache = cache or Cache.empty(self._past, len(ids))
        positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, cache.length :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache.values}
        wanted = {value.name for value in self.session.get_inputs()}
        try:
            logits, *present = self.session.run(None, {n: v for n, v in feeds.items() if n in wanted})
            present = present[: len(self._past)]  # an encoder has none, and perhaps a pooled output
        except Exception as error:  # onnxruntime's exceptions share no base class
            hint = None
            if len(ids) > 1 and ids.shape[1] > 1 and cache.length > 0:
                hint = "with --attention fused, a batch can be continued by one token at a time only"
            if self.context is not None and mask.shape[1] > self.context:
                hint = (
                    f"shorten the text: the model takes at most {self.context} tokens with padding, got {mask.shape[1]}"
                )
            raise ProSparseError(f"model: {self.path}: {' '.join(str(error).split())}", hint=hint) from error
        return logits, Cache(dict(zip(self._past, present, strict=True)))

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the next token of every prompt, ``[batch]``, until all have ended.

        A text that has ended repeats its last token; see `stop`. Call it again to begin anew: nothing is shared
        between calls, so they may run in several threads.

        Args:
            prompts: token ids; shorter ones are padded on the left.
            max_new_tokens: at most this many steps; None for as many as the context has room for.
            temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
            top_k: sample from the so many likeliest tokens only; 0 for all.
            top_p: sample from the fewest likeliest tokens that have this share of the probability.
            seed: for sampling; a row's tokens do not depend on the other rows.

        Raises:
            ProSparseError: a prompt is empty or the texts do not fit into the context, an option is out of range,
                or the model has no cache, so that it is no decoder.
        """
        self._check_cache()
        sampler = Sampler(Sampling(temperature, top_k, top_p, seed), len(prompts))
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise ProSparseError("prompt: expected at least one token, got none", hint="give some text to continue")
        width = max(len(prompt) for prompt in prompts)
        count = self._room(width, max_new_tokens)
        decoder = self.decoder(len(prompts), width + count)
        return self._tokens(decoder, sampler, prompts, width, count)

    def _room(self, width: int, count: int | None) -> int:
        if count is None:
            if self.context is None:
                raise ProSparseError(
                    f"max_new_tokens: expected a number, got None, and {self.path.parent / 'config.json'} has no "
                    "max_position_embeddings",
                    hint="say how many tokens are wanted",
                )
            count = max(self.context - width, 1)
        if count < 1:
            raise ProSparseError(
                f"max_new_tokens: expected at least 1, got {count}", hint="say how many tokens are wanted"
            )
        if self.context is not None and width + count > self.context:
            left = self.context - width
            raise ProSparseError(
                f"context: expected at most {self.context} tokens, got {width} of the prompt and {count} new ones",
                hint=f"ask for at most {left} new tokens" if left > 0 else "shorten the prompt",
            )
        return count

    def _tokens(
        self, decoder: Decoder, sampler: Sampler, prompts: Sequence[Sequence[int]], width: int, count: int
    ) -> Iterator[NDArray[np.int64]]:
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        ended = [False] * len(prompts)
        last = sampler.choose(decoder.prefill(ids, mask))
        for number in range(count):
            yield last
            for row, token in enumerate(last.tolist()):
                ended[row] |= token in self.stop
            if all(ended) or number == count - 1:
                return
            chosen = sampler.choose(decoder.step(last))
            last = np.where(ended, last, chosen) if any(ended) else chosen

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> str:
        """Return the text that continues ``prompt``; see `stream_text`."""
        return "".join(
            self.stream_text(
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop=stop,
                seed=seed,
            )
        )

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> list[str]:
        """Return the texts that continue ``prompts``, all in one batch; see `stream_text`."""
        texts = [""] * len(prompts)
        sampling = Sampling(temperature, top_k, top_p, seed)
        for pieces in self._pieces(prompts, max_new_tokens, sampling, stop):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts

    def stream_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Yield the text that continues ``prompt``, without the prompt: a piece for every token.

        A piece never cuts a character, and nothing is shown that may be the beginning of a stop string; so a piece
        may be empty, and a later one longer.

        Args:
            prompt: text, encoded as the model's tokenizer does it (with its special tokens).
            max_new_tokens: at most this many tokens; None for as many as the context has room for.
            temperature: see `stream`, as for ``top_k``, ``top_p`` and ``seed``.
            top_k: see there.
            top_p: see there.
            stop: strings that end the text, besides the model's own end; they are not shown.
            seed: see there.

        Raises:
            ProSparseError: there is no tokenizer, or as `stream`.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        return (piece for (piece,) in self._pieces([prompt], max_new_tokens, sampling, stop))

    def _pieces(
        self, prompts: Sequence[str], count: int | None, sampling: Sampling, stop: str | Sequence[str]
    ) -> Iterator[list[str]]:
        """Yield the next piece of every text."""
        if self.tokenizer is None:
            raise ProSparseError(
                f"tokenizer: {self.path.parent}: expected a tokenizer.json, got none",
                hint="export again from a folder that has the tokenizer, or call stream() with token ids",
            )
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not text for text in stops):
            raise ProSparseError(
                "stop: expected strings of at least one character, got an empty one", hint="leave the empty one out"
            )
        if any(not prompt for prompt in prompts):  # the tokenizer may make a first token of nothing
            raise ProSparseError("prompt: expected some text, got none", hint="give some text to continue")
        texts = [TextStream(self.tokenizer, stops) for _ in prompts]
        ids = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        tokens = self.stream(
            ids,
            max_new_tokens=count,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        return self._decoded(tokens, texts)

    def _decoded(self, tokens: Iterator[NDArray[np.int64]], texts: list[TextStream]) -> Iterator[list[str]]:
        for row in tokens:
            yield [
                text.end() if int(token) in self.stop else text.add(int(token))
                for text, token in zip(texts, row, strict=True)
            ]
            if all(text.ended for text in texts):
                return
        if any(rest := [text.end() for text in texts]):
            yield rest
