"""Attention over an 8-bit KV cache, and partly over float32: kernel in onnxruntime, function body, and float64."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.attention_model import Case, assert_within, exact, run, stored
from support.kernels import session

from graph_passes.custom_ops import CacheFormat

CASES = {
    "a head each": Case(4, 4, 64, pairs=32),
    "grouped heads": Case(8, 2, 32, pairs=16),
    "one KV head": Case(5, 1, 128, pairs=64),
    "part of a head rotated": Case(3, 3, 96, pairs=12),
    "no RoPE": Case(2, 2, 256),
    "a short last group": Case(4, 2, 40, pairs=20),
    "a small head": Case(2, 1, 8, pairs=4),
    "a window": Case(4, 2, 64, pairs=32, window=7),
    "a window, a head each": Case(2, 2, 128, window=600),
}
Caches = list[NDArray[np.int8]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_body_and_float64(case: Case) -> None:
    """A padded batch of prompts, steps, several tokens after a non-empty cache: y within the bound, equal caches."""
    model = case.model()
    onnx.checker.check_model(model, full_check=True)
    kernel, body = session(model, library=True), session(model, library=False)
    rng, caches = np.random.default_rng(0), None
    for tokens, lengths in [(11, [11, 6]), (1, [12, 7]), (1, [13, 8]), (4, [17, 12])]:
        feeds = case.feeds(rng, lengths, tokens, caches)
        y, caches = run(kernel, feeds)
        other, present = run(body, feeds)
        expected, bound = exact(case, feeds, caches)
        assert_within(y, expected, bound)
        assert_within(other, expected, bound)
        for cache, alike in zip(caches, present, strict=True):
            np.testing.assert_array_equal(cache, alike)


@pytest.mark.parametrize(
    "case", [Case(2, 2, 64, pairs=32), Case(6, 2, 64, pairs=32), Case(2, 2, 128, window=600)], ids=str
)
@pytest.mark.parametrize("cache", ["I8", "F32"])
def test_long_caches(case: Case, cache: CacheFormat) -> None:
    """More slots than are computed at once, by prompt, by chunk, and by token."""
    case = replace(case, cache=cache)
    one, rng = session(case.model(), library=True), np.random.default_rng(1)
    whole = case.feeds(rng, [1200], 1200, None)
    y, present = run(one, whole)
    expected, bound = exact(case, whole, present)
    assert_within(y, expected, bound)
    caches: Caches | None = None
    for begin, end in [(0, 700), (700, 1198), (1198, 1199), (1199, 1200)]:
        feeds = case.feeds(rng, [end], end - begin, caches) | {"qkv": whole["qkv"][:, begin:end]}
        part, caches = run(one, feeds)
        assert_within(part, expected[:, begin:end], bound[:, begin:end])
    for rows, alike in zip(caches or [], present, strict=True):
        np.testing.assert_array_equal(rows, alike)


@pytest.mark.parametrize(("window", "slots"), [(7, 7), (7, 9), (7, 40), (600, 1024), (520, 700)])
def test_a_cache_as_long_as_the_window(window: int, slots: int) -> None:
    """Prompts, chunks, and steps overwrite what the window has left: as with a cache that keeps everything."""
    case, lengths = Case(4, 2, 64, pairs=32, window=window, positions=4096), np.zeros(2, int)
    kernel, body = session(case.model(), library=True), session(case.model(), library=False)
    rng, ring = np.random.default_rng(10), [np.full((2, 2, slots, case.row), 77, np.int8) for _ in range(2)]
    caches: Caches | None = None
    for tokens in (5 * window // 2, 1, window // 2, 1, 1, slots + 3, 1):
        lengths = np.array([tokens, tokens - 2]) if caches is None else lengths + tokens
        feeds = case.feeds(rng, lengths.tolist(), tokens, caches)
        _, caches = run(kernel, feeds)
        expected, bound = exact(case, feeds, caches)
        feeds |= {"past_key": ring[0], "past_value": ring[1]}
        y, ring = run(kernel, feeds)
        assert_within(y, expected, bound)
        other, alike = run(body, feeds)
        assert_within(other, expected, bound)
        for part, same, whole in zip(ring, alike, caches, strict=True):
            np.testing.assert_array_equal(part, same)
            for row, length in enumerate(lengths.tolist()):
                kept = np.arange(max(0, length - slots), length)
                np.testing.assert_array_equal(part[row][:, kept % slots], whole[row][:, kept])


def test_the_cache_holds_rounded_keys_and_values() -> None:
    case = Case(2, 2, 64)
    feeds = case.feeds(np.random.default_rng(2), [9], 9, None)
    feeds["qkv"] *= 10.0 ** np.arange(-4, 5, dtype=np.float32)[:, None]
    _, present = run(session(case.model(), library=True), feeds)
    projected = feeds["qkv"].reshape(9, 6, 64).transpose(1, 0, 2)
    for rows, x in zip(present, (projected[2:4], projected[4:6]), strict=True):
        sizes = np.abs(x).reshape(2, 9, 2, 32).max(-1).repeat(32, -1)
        # half a step, which is at most 1/127 of the largest value, rounded up to 8 bits of mantissa
        assert (np.abs(stored(rows[0], 64) - x) <= sizes / 127 * (1 + 2.0**-7) / 2 * (1 + 2.0**-16)).all()
    assert case.row * 64 <= 1.1 * 64 * 64


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("library", [True, False])
def test_a_shared_buffer(library: bool, window: int) -> None:
    """Past and present in one buffer, as `runtime.cache` and onnxruntime-genai bind them."""
    case, slots = Case(4, 2, 64, pairs=32, window=window), 10 if window else 30
    one, rng = session(case.model(), library=library), np.random.default_rng(3)
    buffers = [
        np.full((1, 2, slots, case.row), 77, np.int8) for _ in range(2)
    ]  # what no token has written has no effect
    caches: Caches | None = None
    for tokens, length in [(9, 9), (1, 10), (3, 13)]:
        feeds = case.feeds(rng, [length], tokens, caches)
        expected, caches = run(one, feeds)
        io = one.io_binding()
        for name in ("qkv", "seqlens_k", "total_sequence_length"):
            io.bind_cpu_input(name, feeds[name])
        io.bind_output("y", "cpu")
        for part, buffer in zip(("key", "value"), buffers, strict=True):
            shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            io.bind_ortvalue_input(f"past_{part}", shared)
            io.bind_ortvalue_output(f"present_{part}", shared)
        one.run_with_iobinding(io)
        assert np.abs(io.get_outputs()[0].numpy() - expected).max() <= 1e-5  # other shapes, another order of sums
        for buffer, cache in zip(buffers, caches, strict=True):
            kept = np.arange(max(0, length - slots), length)
            np.testing.assert_array_equal(buffer[:, :, kept % slots], cache[:, :, kept])


@pytest.mark.parametrize("window", [0, 530])
@pytest.mark.parametrize("cache", ["I8", "F32"])
def test_same_bits_for_any_threads_and_beside_other_rows(window: int, cache: CacheFormat) -> None:
    case = Case(4, 2, 64, pairs=32, window=window, cache=cache)
    feeds = case.feeds(np.random.default_rng(4), [1100, 700], 1100, None)
    if window and cache == "I8":  # the first row leaves its slots, the second does not
        feeds |= {f"past_{part}": np.zeros((2, 2, 800, case.row), case.dtype) for part in ("key", "value")}
    one = session(case.model(), library=True, threads=1)
    y, present = run(one, feeds)
    step = case.feeds(np.random.default_rng(5), [1101, 701], 1, present)
    step |= dict(zip(("past_key", "past_value"), present, strict=True))
    next_y, _ = run(one, step)
    for threads in (2, 3, 4):
        other = session(case.model(), library=True, threads=threads)
        np.testing.assert_array_equal(run(other, feeds)[0], y)
        np.testing.assert_array_equal(run(other, step)[0], next_y)
    for together, result in ((feeds, y), (step, next_y)):
        alone = {name: value[1:] if value.ndim else value for name, value in together.items()}
        np.testing.assert_array_equal(run(one, alone)[0], result[1:])


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(library: bool, part: str, bad: float) -> None:
    """Seen by the queries of its KV head from its token on, and by no other row, head, or earlier token."""
    case = Case(4, 2, 64)
    one = session(case.model(), library=library)
    feeds = case.feeds(np.random.default_rng(6), [9, 9], 9, None)
    clean, _ = run(one, feeds)
    feeds["qkv"].reshape(2, 9, 8, 64)[1, 5, 4 if part == "key" else 6, 3] = bad
    y, present = run(one, feeds)
    seen = np.zeros((2, 9, 4, 64), bool)
    seen[1, 5:, :2] = True
    np.testing.assert_array_equal(np.isnan(y).reshape(seen.shape), seen)
    np.testing.assert_array_equal(y[~np.isnan(y)], clean[~np.isnan(y)])
    y, _ = run(one, case.feeds(np.random.default_rng(7), [10, 10], 1, present))
    np.testing.assert_array_equal(np.isnan(y).reshape(2, 4, 64).all(-1), [[False] * 4, [True, True, False, False]])


def test_errors() -> None:
    case = Case(4, 2, 64, pairs=32, positions=16)
    one = session(case.model(), library=True)
    good = case.feeds(np.random.default_rng(8), [8], 8, None)
    cases = {
        "seqlens_k: row 0 has 9 tokens; expected at most 8": {"seqlens_k": np.array([8], np.int32)},
        "seqlens_k: row 0 has 17 tokens; expected at most 16": case.feeds(np.random.default_rng(8), [17], 17, None),
        "seqlens_k: expected shape": {"seqlens_k": np.array([7, 7], np.int32)},
        "past_value: expected the slots": {"past_value": np.zeros((1, 2, 3, case.row), np.int8)},
        "past_key: expected shape": {"past_key": np.zeros((2, 2, 0, case.row), np.int8)},
    }
    for message, feeds in cases.items():
        with pytest.raises(Exception, match=message):
            one.run(None, good | feeds)
    assert np.isfinite(run(one, good)[0]).all()


@pytest.mark.parametrize("seed", range(int(os.environ.get("PROSPARSE_FUZZ_CASES", "12"))))
def test_random_cases(seed: int) -> None:
    rng = np.random.default_rng(10_000 + seed)
    kv_heads, dim = int(rng.integers(1, 4)), 8 * int(rng.integers(1, 17))
    window = int(rng.choice([0, 0, rng.integers(1, 40)]))
    case = Case(kv_heads * int(rng.integers(1, 9)), kv_heads, dim, int(rng.choice([0, dim // 2, dim // 4])), window)
    kernel, body = session(case.model(), library=True), session(case.model(), library=False)
    rows, caches, lengths = int(rng.integers(1, 4)), None, np.zeros(0, int)
    for turn in range(3):
        tokens = int(rng.integers(1, 30)) if rng.random() < 0.6 else 1
        lengths = rng.integers(1, tokens + 1, rows) if turn == 0 else lengths + tokens
        feeds = case.feeds(rng, lengths.tolist(), tokens, caches)
        feeds["qkv"] *= np.float32(10.0 ** rng.uniform(-3, 1))
        y, present = run(kernel, feeds)
        expected, bound = exact(case, feeds, present)
        assert_within(y, expected, bound)
        other, alike = run(body, feeds)
        assert_within(other, expected, bound)
        for cache, same in zip(present, alike, strict=True):
            np.testing.assert_array_equal(cache, same)
        caches = present
