"""Independent texts in the rows of one KV cache: prompts run alone, decode steps run all rows together.

Fused attention counts each row's tokens separately, so rows of different lengths decode in one step. Several new
tokens after a non-empty cache need a batch of 1, but a row of ``[rows, kv_heads, slots, head_dim]`` is contiguous
memory: a prompt runs as a batch of 1 in its row. A step runs the first rows, so running texts occupy rows without gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.cache import CacheBuffers, cache_inputs
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.session import run_bound

__all__ = ["Block", "RowBatch"]

Block = list[NDArray[np.generic]]
"""Keys and values of consecutive tokens of a row, ``[kv_heads, tokens, head_dim]`` per cache input."""

_LAST_ONLY = "logits_to_keep"  # optional input: the number of last positions that lm_head runs on


class RowBatch:
    """A KV cache with ``rows`` rows of at most ``capacity`` tokens each. Not thread-safe.

    Args:
        model: a decoder with fused attention.
        rows: number of rows.
        capacity: maximum number of tokens per row, at most the model's context.

    Attributes:
        lengths: tokens in each row.
        token_bytes: bytes of one token of one row in the cache.

    Raises:
        ProSparseError: the model is not a decoder, or its attention is not fused.
    """

    def __init__(self, model: SparseModel, rows: int, capacity: int) -> None:
        session = model.session
        past = cache_inputs(session)
        if not past or not model.in_place:
            raise ProSparseError(
                f"model: {model.path}: expected a decoder whose attention is fused, got "
                + (
                    "unfused attention, which cannot run rows of different lengths" if past else "a model without cache"
                ),
                hint="export it without --attention unfused; `prosparse info` says why attention was not fused",
            )
        self._session, self._path = session, model.path
        self._rows, self._capacity = rows, capacity
        inputs = {value.name for value in session.get_inputs()}
        self._wanted = inputs | {value.name for value in session.get_overridable_initializers()}
        self._logits = session.get_outputs()[0].name
        self._cache = CacheBuffers(past, rows, capacity)
        self.token_bytes = sum(value.array(1, 1).nbytes for value in past.values())
        self.lengths = [0] * rows
        self._mask = np.zeros((rows, 0), np.int64)
        self._tokens = np.zeros((rows, 1), np.int64)
        self._positions = np.zeros((rows, 1), np.int64)
        self._steps: dict[int, tuple[onnxruntime.IOBinding, NDArray[np.float32] | None]] = {}

    def prefill(self, row: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to a row and return the next logits, ``[vocabulary]``.

        Raises:
            ProSparseError: the row has no room, or onnxruntime fails.
        """
        begin = self.lengths[row]
        end = begin + len(ids)
        self._reserve(end)
        io = self._session.io_binding()
        self._bind(
            io,
            slice(row, row + 1),
            np.asarray(ids, np.int64)[None],
            np.ones((1, end), np.int64),
            np.arange(begin, end, dtype=np.int64)[None],
        )
        run_bound(self._session, io, self._path)
        self._mask[row, begin:end] = 1
        self.lengths[row] = end
        logits: NDArray[np.float32] = io.get_outputs()[0].numpy()[0, -1]
        return logits

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each of the first ``len(tokens)`` rows and return the next logits, ``[rows, vocabulary]``.

        The next step overwrites the result.

        Raises:
            ProSparseError: a row has no room, or onnxruntime fails.
        """
        count = len(tokens)
        self._reserve(max(self.lengths[:count]) + 1)
        for row, token in enumerate(tokens):
            slot = self.lengths[row]
            self._tokens[row, 0] = token
            self._positions[row, 0] = slot
            self._mask[row, slot] = 1
        io, logits = self._step(count)
        run_bound(self._session, io, self._path)
        for row in range(count):
            self.lengths[row] += 1
        if logits is None:  # the first step of this size: its output tells the vocabulary's size
            logits = io.get_outputs()[0].numpy()
            io.bind_ortvalue_output(self._logits, onnxruntime.OrtValue.ortvalue_from_numpy(logits))
            self._steps[count] = io, logits
        return logits[:, -1]

    def move(self, source: int, target: int) -> None:
        """Move a row's text to another row, whose text is dropped."""
        if source == target:
            return
        self.truncate(target, 0)
        self.write(target, self.read(source, 0, self.lengths[source]))
        self.truncate(source, 0)

    def truncate(self, row: int, length: int) -> None:
        """Drop a row's tokens from position ``length`` on."""
        self._mask[row, length:] = 0
        self.lengths[row] = min(length, self.lengths[row])

    def read(self, row: int, begin: int, end: int) -> Block:
        """Return keys and values of tokens ``begin`` to ``end`` of a row; they share the cache's memory."""
        return [array[row, :, begin:end] for array in self._cache.arrays.values()]

    def write(self, row: int, block: Block) -> None:
        """Append keys and values to a row, as `read` returned them.

        Raises:
            ProSparseError: the row has no room.
        """
        begin = self.lengths[row]
        end = begin + block[0].shape[1]
        self._reserve(end)
        for array, part in zip(self._cache.arrays.values(), block, strict=True):
            array[row, :, begin:end] = part
        self._mask[row, begin:end] = 1
        self.lengths[row] = end

    def _step(self, count: int) -> tuple[onnxruntime.IOBinding, NDArray[np.float32] | None]:
        """Return the binding for steps of ``count`` rows: made once, until the buffers move."""
        if count not in self._steps:
            io = self._session.io_binding()
            rows = slice(0, count)
            self._bind(io, rows, self._tokens[rows], self._mask[rows], self._positions[rows])
            self._steps[count] = io, None
        return self._steps[count]

    def _bind(
        self,
        io: onnxruntime.IOBinding,
        rows: slice,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, _LAST_ONLY: np.ones(1, np.int64)}
        for name, array in inputs.items():
            if name in self._wanted:
                io.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        io.bind_output(self._logits, "cpu")  # get_outputs() returns it first
        for name, buffer in self._cache.arrays.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer[rows])
            io.bind_ortvalue_input(name, value)
            io.bind_ortvalue_output(name.replace("past_key_values.", "present.", 1), value)

    def _reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens in every row."""
        if tokens > self._capacity:
            raise ProSparseError(
                f"context: expected at most {self._capacity} tokens, got {tokens}",
                hint="shorten the prompt, or serve with a larger --context",
            )
        if self._cache.reserve(tokens):
            self._steps.clear()
            self._mask = np.pad(self._mask, ((0, 0), (0, self._cache.slots - self._mask.shape[1])))
