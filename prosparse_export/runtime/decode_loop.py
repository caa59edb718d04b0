"""The inner loop of generation: a session whose inputs and outputs are bound once, with the KV cache in place.

onnxruntime's GroupQueryAttention writes new keys and values into the cache where they belong if past and present are
one buffer, as long as the longest text will be. So for a decode step nothing is allocated, copied or bound: a token, a
position and one element of the mask are written, and the session runs. The mask is as long as the buffer. The operator
counts a row's tokens by the mask's sum and reads no further, so what is behind them does not matter.

Attention in standard operators returns a longer cache each step. There the outputs of a step are bound as the inputs of
the next, and onnxruntime copies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError

__all__ = ["PREFILL_TOKENS", "Decoder"]

PREFILL_TOKENS = 512
"""A longer prompt of one row goes in parts: attention scores and logits are tokens x context and x vocabulary."""

_LAST_ONLY = "logits_to_keep"  # an optional input: for how many last positions lm_head is computed
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """Texts being continued, one in each row; of one thread (the session itself is of any).

    Args:
        session: a decoder's graph: input_ids, attention_mask, position_ids, past_key_values.N.key and .value;
            logits first among the outputs, present.N.key and .value.
        path: the graph's file, for messages.
        batch: rows.
        capacity: tokens that a row's cache can hold.
        in_place: all attentions are GroupQueryAttention, so that the cache can stay where it is.
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
        past = [value for value in inputs if value.name.startswith("past_key_values.")]
        self._present = {value.name: value.name.replace("past_key_values.", "present.", 1) for value in past}
        missing = next((name for name in self._present.values() if name not in outputs), None)
        if missing or not past:
            raise ProSparseError(
                f"model: {path}: expected a decoder with a KV cache, got "
                + (f"no output {missing}" if missing else "no input past_key_values.N.key"),
                hint="give a decoder that prosparse-export wrote",
            )
        slots = capacity if in_place else 0
        self._cache = {
            value.name: _bound(np.empty((batch, value.shape[1], slots, value.shape[3]), _TYPES[value.type]))
            for value in past
        }
        self._width = 0  # columns of the mask so far: left padding included
        self._mask = np.zeros((batch, 0), np.int64)
        self._step: onnxruntime.IOBinding | None = None

    def prefill(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take the prompts and return the logits that follow them, ``[batch, vocabulary]``.

        Args:
            ids: ``[batch, tokens]``, at most the capacity.
            mask: 1 for a token, 0 for padding on the left, ``[batch, tokens]``.

        Raises:
            ProSparseError: the prompts are longer than the capacity, or onnxruntime fails.
        """
        if ids.shape[1] > self._capacity:
            raise ProSparseError(
                f"prompt: expected at most {self._capacity} tokens, got {ids.shape[1]}",
                hint="shorten the prompt, or ask for a decoder of more capacity",
            )
        part = PREFILL_TOKENS if self._batch == 1 else ids.shape[1]  # GroupQueryAttention's limit for larger batches
        positions = np.maximum(mask.cumsum(-1) - 1, 0)
        logits = np.empty((0, 0, 0), np.float32)
        for begin in range(0, ids.shape[1], part):
            end = min(begin + part, ids.shape[1])
            io = self._session.io_binding()
            self._bind_inputs(io, ids[:, begin:end], mask[:, :end], positions[:, begin:end])
            io.bind_output(self._logits_name, "cpu")
            self._bind_cache(io)
            self._run(io)
            results = io.get_outputs()
            self._keep(results)
            logits = results[0].numpy()
        self._width = mask.shape[1]
        self._bind_step(mask, logits.shape[-1])
        return logits[:, -1]

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Take the next token of every row, ``[batch]``, and return the logits that follow, ``[batch, vocabulary]``.

        The result is overwritten by the next step.

        Raises:
            ProSparseError: the cache is full, or onnxruntime fails.
        """
        if self._width >= self._capacity:
            raise ProSparseError(
                f"context: expected at most {self._capacity} tokens, got one more",
                hint="end here, or ask for a decoder of more capacity",
            )
        assert self._step is not None
        np.copyto(self._tokens, tokens)
        for row, slot in enumerate(self._slots):  # plain integers: for a few rows an operation on arrays costs more
            self._positions[row, 0] = slot
            self._slots[row] = slot + 1
            if self._in_place:
                self._mask[row, slot] = 1
        if not self._in_place:
            self._mask = np.concatenate([self._mask, self._ones], axis=1)
            self._step.bind_ortvalue_input("attention_mask", _bound(self._mask))
        self._run(self._step)
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
        if self._in_place:  # the cache is packed: a row's tokens begin at slot 0, whatever was padding before
            self._mask = (np.arange(self._capacity) < lengths[:, None]).astype(np.int64)
        else:
            self._mask = mask
        self._step = self._session.io_binding()
        self._bind_inputs(self._step, ids, self._mask, self._positions)
        self._step.bind_ortvalue_output(self._logits_name, _bound(logits))
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

    def _run(self, io: onnxruntime.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(io)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ProSparseError(
                f"model: {self._path}: {' '.join(str(error).split())}",
                hint="check the token ids, the memory, and the files: `prosparse info ONNX_FILE --verify`",
            ) from error


def _bound(array: NDArray[np.generic]) -> onnxruntime.OrtValue:
    """Return an OrtValue in the array's own memory, which it keeps alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
