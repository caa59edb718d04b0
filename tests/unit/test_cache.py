"""KV cache inputs, arrays, and buffers that grow."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np

from prosparse_export.runtime.cache import Cache, CacheBuffers, CacheInput, cache_inputs

SESSION: Any = SimpleNamespace(
    get_modelmeta=lambda: SimpleNamespace(
        custom_metadata_map={"com.prosparse.windows": '{"past_key_values.0.value": 700}'}
    ),
    get_inputs=lambda: [
        SimpleNamespace(name="input_ids", shape=["b", "s"], type="tensor(int64)"),
        SimpleNamespace(name="past_key_values.0.key", shape=["b", 2, "p", 8], type="tensor(int8)"),
        SimpleNamespace(name="past_key_values.0.value", shape=["b", 3, "p", 4], type="tensor(float)"),
    ],
)


def test_cache_inputs() -> None:
    key, value = CacheInput(2, 8, np.int8), CacheInput(3, 4, window=700)
    assert cache_inputs(SESSION) == {"past_key_values.0.key": key, "past_key_values.0.value": value}
    assert cache_inputs(SESSION, ".value") == {"past_key_values.0.value": value}


def test_rows_are_taken_and_stacked() -> None:
    empty = Cache.empty(cache_inputs(SESSION), batch=3)
    assert empty.length == 0
    assert empty.values["past_key_values.0.key"].dtype == np.int8
    full = Cache({"k": np.arange(24.0).reshape(3, 2, 4, 1)})
    assert full.length == 4
    again = Cache.stacked([full.row(row) for row in range(3)])
    np.testing.assert_array_equal(again.values["k"], full.values["k"])


def test_buffers_grow_in_steps_up_to_the_limit_and_keep_their_tokens() -> None:
    buffers = CacheBuffers({"k": CacheInput(2, 4, np.int8)}, batch=2, limit=3000)
    sizes = [buffers.slots]
    written = 0
    while written < 3000:
        if buffers.reserve(written + 1):
            sizes.append(buffers.slots)
        buffers.row(1)["k"][0, :, written] = written % 101  # a row shares the buffer's memory
        written += 1
    assert sizes[:3] == [0, 256, 512]
    assert sizes[-1] == 3000
    assert all(larger - smaller <= max(256, smaller // 4) for smaller, larger in itertools.pairwise(sizes))
    assert buffers.arrays["k"].shape == (2, 2, 3000, 4)
    np.testing.assert_array_equal(buffers.arrays["k"][1, 0, :, 0], np.arange(3000) % 101)
    assert not buffers.reserve(2000)


def test_a_long_prompt_is_reserved_at_once() -> None:
    buffers = CacheBuffers({"k": CacheInput(1, 4)}, batch=1, limit=1 << 17)
    buffers.reserve(1000)
    assert buffers.slots == 1024


def test_a_window_bounds_its_buffer() -> None:
    inputs = {"global": CacheInput(1, 4), "local": CacheInput(1, 4, window=700)}
    whole, short = (CacheBuffers(inputs, batch=1, limit=3000, chunk=chunk) for chunk in (None, 512))
    for buffers in (whole, short):
        buffers.reserve(600)
        buffers.arrays["local"][0, 0, :600, 0] = np.arange(600)
        for tokens in range(700, 3000, 100):
            buffers.reserve(tokens)
        np.testing.assert_array_equal(buffers.arrays["local"][0, 0, :600, 0], np.arange(600))
        assert buffers.slots == buffers.arrays["global"].shape[2] >= 2900
    assert whole.arrays["local"].shape[2] == whole.slots
    # the 512 tokens of a chunk and the 699 before them, rounded up to what attention sums over at a time
    assert short.arrays["local"].shape[2] == 1536
    assert short.row(0)["local"].shape[2] == 1536


def test_room_for_tokens_that_a_window_would_overwrite() -> None:
    past = np.ones((2, 1, 5, 4), np.float32)
    assert CacheInput(1, 4).with_room(past, 3) is past
    assert CacheInput(1, 4, window=2).with_room(past, 3).shape[2] == 8
