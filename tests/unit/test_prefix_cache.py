"""Blocks of earlier prompts: found by all their tokens, dropped when memory is full."""

from __future__ import annotations

import numpy as np
import pytest

from prosparse_export.runtime.row_batch import Block
from prosparse_export.serve.prefix_cache import BLOCK_TOKENS, PrefixCache

IDS = list(range(3 * BLOCK_TOKENS + 5))
SIZE = BLOCK_TOKENS * 4


class Reader:
    """Reads the token ids of a text as float32."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.calls = np.asarray(ids, np.float32), 0

    def __call__(self, begin: int, end: int) -> Block:
        self.calls += 1
        return [self.ids[None, begin:end, None]]


def found(cache: PrefixCache, ids: list[int]) -> list[float]:
    return [value for block in cache.find(ids) for value in block[0].ravel().tolist()]


def test_whole_blocks_are_found() -> None:
    cache = PrefixCache(10 * SIZE)
    cache.add(IDS, Reader(IDS))
    assert found(cache, IDS) == IDS[: 3 * BLOCK_TOKENS]
    assert found(cache, IDS[: 2 * BLOCK_TOKENS + 1]) == IDS[: 2 * BLOCK_TOKENS]
    assert cache.nbytes == 3 * SIZE


def test_the_last_token_of_a_prompt_is_left_to_compute() -> None:
    cache = PrefixCache(10 * SIZE)
    cache.add(IDS, Reader(IDS))
    assert found(cache, IDS[: 2 * BLOCK_TOKENS]) == IDS[:BLOCK_TOKENS]


def test_a_block_after_other_tokens_is_another() -> None:
    cache = PrefixCache(10 * SIZE)
    cache.add(IDS, Reader(IDS))
    assert found(cache, [999, *IDS[1:]]) == []


def test_known_blocks_are_not_read_again() -> None:
    cache, reader = PrefixCache(10 * SIZE), Reader(IDS)
    cache.add(IDS, reader)
    cache.add(IDS, reader)
    assert reader.calls == 3


def test_blocks_are_copies() -> None:
    cache, reader = PrefixCache(10 * SIZE), Reader(IDS)
    cache.add(IDS, reader)
    reader.ids[:] = -1
    assert found(cache, IDS)[:2] == [0.0, 1.0]


def test_the_least_recently_used_block_is_dropped() -> None:
    cache = PrefixCache(2 * SIZE)
    one, two, three = ([n] * (BLOCK_TOKENS + 1) for n in (1, 2, 3))
    cache.add(one, Reader(one))
    cache.add(two, Reader(two))
    cache.find(one)
    cache.add(three, Reader(three))
    assert (len(cache.find(one)), len(cache.find(two)), len(cache.find(three))) == (1, 0, 1)
    assert cache.nbytes == 2 * SIZE


@pytest.mark.parametrize("looked_up", [False, True])
def test_the_last_block_of_a_text_is_dropped_first(looked_up: bool) -> None:
    cache = PrefixCache(3 * SIZE)
    cache.add(IDS, Reader(IDS))
    if looked_up:
        cache.find(IDS)
    for number in (2, 3):
        other = [number] * (BLOCK_TOKENS + 1)
        cache.add(other, Reader(other))
    assert found(cache, IDS) == IDS[:BLOCK_TOKENS]


def test_a_text_does_not_drop_its_own_blocks() -> None:
    cache, reader = PrefixCache(2 * SIZE), Reader(IDS)
    cache.add([1] * (BLOCK_TOKENS + 1), Reader([1] * (BLOCK_TOKENS + 1)))
    cache.add(IDS, reader)
    assert found(cache, IDS) == IDS[: 2 * BLOCK_TOKENS]
    assert cache.nbytes == 2 * SIZE
    cache.add(IDS, reader)
    assert found(cache, IDS) == IDS[: 2 * BLOCK_TOKENS]


def test_nothing_is_kept_without_memory() -> None:
    cache = PrefixCache(0)
    cache.add(IDS, Reader(IDS))
    assert (cache.nbytes, cache.find(IDS)) == (0, [])
