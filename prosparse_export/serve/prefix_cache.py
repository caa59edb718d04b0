"""Keys and values of prompts that were computed before, to be copied instead of computed again.

Prompts share beginnings: a system prompt, the turns of a chat so far. They are kept in blocks of consecutive tokens. A
block depends on all tokens before it, so its key is a hash of those and its own.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from prosparse_export.runtime.row_batch import Block

__all__ = ["BLOCK_TOKENS", "PrefixCache"]

BLOCK_TOKENS = 64


class PrefixCache:
    """Least recently used blocks are dropped first, of a text's from the last. Not thread-safe.

    Args:
        limit: maximum number of bytes; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.nbytes = 0

    def find(self, ids: Sequence[int]) -> list[Block]:
        """Return the known blocks at the beginning of a prompt, without its last token, whose logits are needed."""
        known = list(itertools.takewhile(self._blocks.__contains__, _keys(ids[:-1])))
        self._touch(known)
        return [self._blocks[key] for key in known]

    def add(self, ids: Sequence[int], read: Callable[[int, int], Block]) -> None:
        """Keep the whole blocks of ``ids``; ``read(begin, end)`` returns keys and values, which are copied.

        If they do not all fit, the first ones are kept: a block is found only after those before it.
        """
        keys = list(_keys(ids))
        own = set(keys)
        self._touch(keys)
        for number, key in enumerate(keys):
            if key in self._blocks:
                continue
            begin = number * BLOCK_TOKENS
            block = read(begin, begin + BLOCK_TOKENS)
            size = sum(part.nbytes for part in block)
            if not self._make_room(size, own):
                break
            self._blocks[key] = [part.copy() for part in block]
            self.nbytes += size
        self._touch(keys)

    def _make_room(self, size: int, kept: set[bytes]) -> bool:
        """Drop the oldest blocks until ``size`` more bytes fit; False if they do not without blocks of ``kept``."""
        while self.nbytes + size > self._limit:
            oldest = next(iter(self._blocks), None)
            if oldest is None or oldest in kept:
                return False
            self.nbytes -= sum(part.nbytes for part in self._blocks.pop(oldest))
        return True

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Mark the blocks of a text as used, the first one last: without it the others are not found."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)


def _keys(ids: Sequence[int]) -> Iterator[bytes]:
    """Yield the key of each whole block."""
    key = b""
    for end in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS):
        block = np.asarray(ids[end - BLOCK_TOKENS : end], np.int64)
        key = hashlib.blake2b(key + block.tobytes(), digest_size=32).digest()
        yield key
