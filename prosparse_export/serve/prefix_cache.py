"""Keys and values of prompts that were computed before, to be copied instead of computed again.

Prompts share beginnings: a system prompt, the turns of a chat so far. They are kept in blocks of consecutive tokens. A
block depends on all tokens before it, so its key is a hash of those and its own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from prosparse_export.runtime.row_batch import Block

__all__ = ["BLOCK_TOKENS", "PrefixCache"]

BLOCK_TOKENS = 64


class PrefixCache:
    """Least recently used blocks are dropped first. Not thread-safe.

    Args:
        limit: maximum number of bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.nbytes = 0

    def find(self, ids: Sequence[int]) -> list[Block]:
        """Return the known blocks at the beginning of a prompt, without its last token, whose logits are needed."""
        found = []
        for key in _keys(ids[:-1]):
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            found.append(self._blocks[key])
        return found

    def add(self, ids: Sequence[int], read: Callable[[int, int], Block]) -> None:
        """Keep the whole blocks of ``ids``; ``read(begin, end)`` returns keys and values, which are copied."""
        for number, key in enumerate(_keys(ids)):
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            begin = number * BLOCK_TOKENS
            block = read(begin, begin + BLOCK_TOKENS)
            size = sum(part.nbytes for part in block)
            if size > self._limit:
                return
            while self.nbytes + size > self._limit:
                _, dropped = self._blocks.popitem(last=False)
                self.nbytes -= sum(part.nbytes for part in dropped)
            self._blocks[key] = [part.copy() for part in block]
            self.nbytes += size


def _keys(ids: Sequence[int]) -> Iterator[bytes]:
    """Yield the key of each whole block."""
    key = b""
    for end in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS):
        block = np.asarray(ids[end - BLOCK_TOKENS : end], np.int64)
        key = hashlib.blake2b(key + block.tobytes(), digest_size=32).digest()
        yield key
