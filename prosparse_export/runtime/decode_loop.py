"""Decode with inputs and outputs that are bound once, and the KV cache in place.

Fused attention appends keys and values in place if past and present share one buffer. A decode step then allocates,
copies, and binds nothing: it writes a token, a position, and one element of the mask, and runs the session. The mask is
as long as the buffer; the operator takes the sum of a row as its number of tokens and ignores everything beyond. A full
buffer grows (cache.py) and is bound anew. That of a sliding window stops growing: new tokens overwrite the oldest ones.

Prompts run in chunks, since attention scores and logits take memory for chunk x context. The operator continues a batch
by one token only, so the rows of a long batch run one after the other, each into its row of the cache.

Unfused attention returns a longer cache in each step. The outputs of a step are bound as the inputs of the next, and
onnxruntime copies.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.cache import CacheBuffers, cache_inputs
from prosparse_export.runtime.sampling import Sampler
from prosparse_export.runtime.session import run_bound

__all__ = ["PREFILL_TOKENS", "Decoder", "decode_tokens"]

PREFILL_TOKENS = 512
"""Largest number of tokens of a prompt that run at once."""

_LAST_ONLY = "logits_to_keep"  # optional input: the number of last positions that lm_head runs on


class Decoder:
    """Texts being continued, one per row. Not thread-safe, but decoders can share a session.

    Args:
        session: a decoder with inputs input_ids, attention_mask, position_ids, past_key_values.N.key and .value, and
            outputs logits (the first), present.N.key and .value.
        path: the graph's file, for error messages.
        batch: number of rows.
        capacity: maximum number of tokens per row.
        in_place: every attention is fused.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, path: Path, *, batch: int, capacity: int, in_place: bool
    ) -> None:
        self._session = session
        self._path = path
        self._batch = batch
        self._capacity = capacity
        self._in_place = in_place
        inputs = session.get_inputs()
        optional = [value.name for value in session.get_overridable_initializers()]
        self._wanted = frozenset([*(value.name for value in inputs), *optional])
        outputs = [value.name for value in session.get_outputs()]
        self._logits_name = outputs[0]
        past = cache_inputs(session)
        self._present = {name: name.replace("past_key_values.", "present.", 1) for name in past}
        missing = next((name for name in self._present.values() if name not in outputs), None)
        if missing or not past:
            raise ProSparseError(
                f"model: {path}: expected a decoder with a KV cache, got "
                + (f"no output {missing}" if missing else "no input past_key_values.N.key"),
                hint="use a decoder from prosparse-export",
            )
        self._buffers = CacheBuffers(past, batch, capacity, chunk=PREFILL_TOKENS)
        self._cache = {name: _bound(array) for name, array in self._buffers.arrays.items()}
        self._width = 0  # tokens so far, left padding included
        self._mask = np.zeros((batch, 0), np.int64)
        self._step: onnxruntime.IOBinding | None = None

    def prefill(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the prompts and return the logits of the next token, ``[batch, vocabulary]``.

        Args:
            ids: ``[batch, tokens]``, at most the capacity.
            mask: 1 for a token, 0 for padding on the left, ``[batch, tokens]``.

        Raises:
            ProSparseError: the prompts are longer than the capacity, or onnxruntime fails.
        """
        width = ids.shape[1]
        if width > self._capacity:
            raise ProSparseError(
                f"prompt: expected at most {self._capacity} tokens, got {width}",
                hint="shorten the prompt, or create a decoder with a larger capacity",
            )
        if self._in_place:
            self._buffers.reserve(width)
        if self._in_place and self._batch > 1 and width > PREFILL_TOKENS:
            lengths = mask.sum(-1).tolist()
            rows = [
                self._prefill(ids[row : row + 1, width - length :], mask[row : row + 1, width - length :], row)
                for row, length in enumerate(lengths)
            ]
            logits = np.concatenate(rows)
        else:
            logits = self._prefill(ids, mask)
        self._width = width
        self._bind_step(mask, logits.shape[-1])
        return logits[:, -1]

    def _prefill(self, ids: NDArray[np.int64], mask: NDArray[np.int64], row: int | None = None) -> NDArray[np.float32]:
        """Run prompts in chunks, or one of them alone into its ``row``; return the last position's logits."""
        if self._in_place:
            arrays = self._buffers.arrays if row is None else self._buffers.row(row)
            self._cache = {name: _bound(array) for name, array in arrays.items()}
        part = PREFILL_TOKENS if len(ids) == 1 else ids.shape[1]
        positions = np.maximum(mask.cumsum(-1) - 1, 0)
        logits = np.empty((0, 0, 0), np.float32)
        for begin in range(0, ids.shape[1], part):
            end = min(begin + part, ids.shape[1])
            io = self._session.io_binding()
            self._bind_inputs(io, ids[:, begin:end], mask[:, :end], positions[:, begin:end])
            io.bind_output(self._logits_name, "cpu")
            self._bind_cache(io)
            run_bound(self._session, io, self._path)
            results = io.get_outputs()
            self._keep(results)
            logits = results[0].numpy()[:, -1:]
        return logits

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to every row, ``[batch]``, and return the next logits, ``[batch, vocabulary]``.

        The next step overwrites the result.

        Raises:
            ProSparseError: the cache is full, or onnxruntime fails.
        """
        if self._width >= self._capacity:
            raise ProSparseError(
                f"context: expected at most {self._capacity} tokens, got {self._capacity + 1}",
                hint="stop here, or create a decoder with a larger capacity",
            )
        assert self._step is not None
        if self._in_place and self._buffers.reserve(self._width + 1):
            self._bind_buffers()
        np.copyto(self._tokens, tokens)
        for row, slot in enumerate(self._slots):  # Python integers: faster than numpy for a few rows
            self._positions[row, 0] = slot
            self._slots[row] = slot + 1
            if self._in_place:
                self._mask[row, slot] = 1
        if not self._in_place:
            self._mask = np.concatenate([self._mask, self._ones], axis=1)
            self._step.bind_ortvalue_input("attention_mask", _bound(self._mask))
        run_bound(self._session, self._step, self._path)
        if not self._in_place:
            self._keep(self._step.get_outputs())
            self._bind_cache(self._step)
        self._width += 1
        return self._last

    def _bind_step(self, mask: NDArray[np.int64], vocabulary: int) -> None:
        lengths = mask.sum(-1)
        ids = np.zeros((self._batch, 1), np.int64)
        self._tokens = ids[:, 0]
        self._positions = lengths[:, None].copy()
        self._slots: list[int] = lengths.tolist()
        self._ones = np.ones((self._batch, 1), np.int64)
        logits = np.empty((self._batch, 1, vocabulary), np.float32)
        self._last = logits[:, 0]
        self._mask = mask
        self._step = self._session.io_binding()
        self._bind_inputs(self._step, ids, self._mask, self._positions)
        self._step.bind_ortvalue_output(self._logits_name, _bound(logits))
        if self._in_place:
            self._bind_buffers()
        else:
            self._bind_cache(self._step)

    def _bind_buffers(self) -> None:
        """Bind the buffers and a mask of their length to the step: a row's tokens begin at slot 0, without padding."""
        assert self._step is not None
        lengths = np.asarray(self._slots)
        self._mask = (np.arange(self._buffers.slots) < lengths[:, None]).astype(np.int64)
        self._step.bind_ortvalue_input("attention_mask", _bound(self._mask))
        self._cache = {name: _bound(array) for name, array in self._buffers.arrays.items()}
        self._bind_cache(self._step)

    def _bind_inputs(
        self,
        io: onnxruntime.IOBinding,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("position_ids", positions)):
            if name in self._wanted:
                io.bind_ortvalue_input(name, _bound(np.ascontiguousarray(array)))
        if _LAST_ONLY in self._wanted:
            io.bind_ortvalue_input(_LAST_ONLY, _bound(np.ones(1, np.int64)))

    def _bind_cache(self, io: onnxruntime.IOBinding) -> None:
        for past, present in self._present.items():
            io.bind_ortvalue_input(past, self._cache[past])
            if self._in_place:
                io.bind_ortvalue_output(present, self._cache[past])
            else:
                io.bind_output(present, "cpu")

    def _keep(self, outputs: list[onnxruntime.OrtValue]) -> None:
        if not self._in_place:
            self._cache = dict(zip(self._present, outputs[1:], strict=True))


def decode_tokens(
    decoder: Decoder, sampler: Sampler, prompts: Sequence[Sequence[int]], count: int, stop: Container[int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the next token of every prompt, ``[batch]``, up to ``count`` times or until all texts have ended.

    Args:
        decoder: a new one, with a row per prompt and capacity for the longest prompt and ``count`` tokens.
        sampler: chooses the tokens.
        prompts: token ids; shorter prompts are padded on the left.
        count: number of steps.
        stop: token ids that end a text, which then repeats its last token.
    """
    width = max(len(prompt) for prompt in prompts)
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
            ended[row] |= token in stop
        if all(ended) or number == count - 1:
            return
        chosen = sampler.choose(decoder.step(last))
        last = np.where(ended, last, chosen) if any(ended) else chosen


def _bound(array: NDArray[np.generic]) -> onnxruntime.OrtValue:
    """Return an OrtValue that shares the array's memory and keeps it alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
