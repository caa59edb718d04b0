"""Run an artifact: onnxruntime, a KV cache, and nothing of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.errors import ProSparseError
from prosparse_export.library import register

__all__ = ["Cache", "SparseModel", "choose_token", "load"]


@dataclass(frozen=True)
class Cache:
    """Keys and values of all past tokens, by input name, each ``[batch, kv_heads, past, head_dim]``."""

    values: dict[str, NDArray[np.float32]]

    @property
    def length(self) -> int:
        """Past tokens, padding included."""
        return next(iter(self.values.values())).shape[2] if self.values else 0


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    library: bool = True,
    session_options: onnxruntime.SessionOptions | None = None,
) -> SparseModel:
    """Open an exported model; see `SparseModel.open`."""
    return SparseModel.open(path, threads=threads, library=library, session_options=session_options)


@dataclass(frozen=True)
class SparseModel:
    """An exported language model in an onnxruntime session.

    Attributes:
        session: the session.
        path: the graph's file.
        tokenizer: from tokenizer.json beside it, or None.
        stop: token ids that end a text.
    """

    session: onnxruntime.InferenceSession
    path: Path
    tokenizer: Tokenizer | None
    stop: frozenset[int]
    _past: dict[str, tuple[int, int]] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        library: bool = True,
        session_options: onnxruntime.SessionOptions | None = None,
        encoder_decoder: bool = False,
    ) -> SparseModel:
        """Open ``path``.

        Args:
            path: an .onnx file from ``prosparse-export``.
            threads: intra-op threads; None leaves it to onnxruntime (one per core).
            library: register the sparse kernels; without them the operators' ONNX bodies run.
            session_options: options of your own; ``threads`` then changes nothing in them if None.
            encoder_decoder: the decoder of an encoder-decoder is welcome; see encoder_decoder.py.

        Raises:
            ProSparseError: the file is missing or damaged, or onnxruntime cannot run it.
        """
        path = Path(path)
        if not path.is_file():
            raise ProSparseError(
                f"model: {path}: expected an .onnx file, got no such file",
                hint=f"make it with: prosparse-export MODEL_DIR {path}",
            )
        options = session_options or onnxruntime.SessionOptions()
        if session_options is None:
            options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        if library:
            register(options)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ProSparseError(
                f"model: {path}: onnxruntime {onnxruntime.__version__} cannot open it: {' '.join(str(error).split())}",
                hint="prosparse.json beside it names the onnxruntime that it needs; export a damaged file again",
            ) from error
        if not encoder_decoder and any(v.name == "encoder_attention_mask" for v in session.get_inputs()):
            raise ProSparseError(
                f"model: {path}: expected a decoder alone or an encoder, got the decoder of an encoder-decoder",
                hint="prosparse generate runs it; in Python prosparse_export.encoder_decoder.EncoderDecoder does",
            )
        past = {
            value.name: (int(value.shape[1]), int(value.shape[3]))
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        return cls(session, path, _tokenizer(path.parent), _stop_tokens(path.parent), past)

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
        if cache is None:
            empty = {n: np.zeros((len(ids), heads, 0, dim), np.float32) for n, (heads, dim) in self._past.items()}
            cache = Cache(empty)
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
            raise ProSparseError(f"model: {self.path}: {' '.join(str(error).split())}", hint=hint) from error
        return logits, Cache(dict(zip(self._past, present, strict=True)))

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[NDArray[np.int64]]:
        """Yield the next token of every prompt, ``[batch]``, until all have ended.

        A text that has ended repeats its last token; see `stop`.

        Args:
            prompts: token ids; shorter ones are padded on the left.
            max_new_tokens: at most this many steps.
            temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
            seed: for sampling.

        Raises:
            ProSparseError: a prompt is empty, or the model has no cache, so that it is no decoder.
        """
        if not self._past:
            raise ProSparseError(
                f"model: {self.path}: expected a decoder with a KV cache, got a model without one",
                hint="an encoder computes hidden states: call forward()",
            )
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise ProSparseError("prompt: expected at least one token, got none", hint="give some text to continue")
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        rng = np.random.default_rng(seed)
        cache: Cache | None = None
        ended = np.zeros(len(prompts), bool)
        last = np.zeros(len(prompts), np.int64)
        for _ in range(max_new_tokens):
            logits, cache = self.forward(ids, mask, cache)
            last = np.where(ended, last, choose_token(logits[:, -1], temperature, rng))
            yield last
            ended |= np.isin(last, list(self.stop))
            if ended.all():
                return
            ids = last[:, None]
            mask = np.concatenate([mask, np.ones((len(prompts), 1), np.int64)], axis=1)

    def generate(
        self, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        """Return the text that continues ``prompt``."""
        pieces = self.stream_text(prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return "".join(pieces)

    def stream_text(
        self, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int | None = None
    ) -> Iterator[str]:
        """Yield the text that continues ``prompt`` piece by piece; a piece never cuts a character."""
        if self.tokenizer is None:
            raise ProSparseError(
                f"tokenizer: {self.path.parent}: expected a tokenizer.json, got none",
                hint="export again from a folder that has the tokenizer, or call stream() with token ids",
            )
        start = self.tokenizer.encode(prompt).ids
        tokens: list[int] = []
        shown = ""
        for (token,) in self.stream([start], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed):
            if int(token) in self.stop:
                break
            tokens.append(int(token))
            text = self.tokenizer.decode(tokens)
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(shown):
                yield text[len(shown) :]
                shown = text


def choose_token(logits: NDArray[np.float32], temperature: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a token per row of ``logits``, ``[batch, vocabulary]``: the likeliest at temperature 0, else a sample."""
    if temperature <= 0.0:
        return np.asarray(logits.argmax(-1), np.int64)
    scaled = (logits - logits.max(-1, keepdims=True)).astype(np.float64) / temperature
    weights = np.exp(scaled)
    weights /= weights.sum(-1, keepdims=True)
    return np.array([rng.choice(len(row), p=row) for row in weights], np.int64)


def _tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


def _stop_tokens(folder: Path) -> frozenset[int]:
    """Return eos_token_id of generation_config.json, else of config.json: a number, a list or nothing."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        stop = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if stop is not None:
            return frozenset([stop] if isinstance(stop, int) else stop)
    return frozenset()
