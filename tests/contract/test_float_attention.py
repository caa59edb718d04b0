"""Attention over a float32 KV cache: the kernel in onnxruntime, float64, and its body, which is GroupQueryAttention.

What it has in common with an 8-bit cache is in test_attention.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.attention_model import Case, Feeds, assert_within, exact, run
from support.kernels import session

CASES = {
    "a head each": Case(4, 4, 64, pairs=32, cache="F32"),
    "grouped heads": Case(8, 2, 32, pairs=16, cache="F32"),
    "one KV head": Case(5, 1, 128, pairs=64, cache="F32"),
    "part of a head rotated": Case(3, 3, 96, pairs=16, cache="F32"),
    "no RoPE": Case(2, 2, 256, cache="F32"),
    "a window": Case(4, 2, 64, pairs=32, window=7, cache="F32"),
    "a window, a head each": Case(2, 2, 128, window=600, cache="F32"),
}
ONLY_KERNEL = {  # sizes that onnxruntime's operator rejects
    "a head that is not a multiple of 16": Case(4, 2, 40, pairs=20, cache="F32"),
    "a small head": Case(2, 1, 8, pairs=4, cache="F32"),
}
Caches = list[NDArray[np.float32]]


def by_row(feeds: Feeds) -> Iterator[Feeds]:
    for row in range(len(feeds["seqlens_k"])):
        yield {name: value[row : row + 1] if value.ndim else value for name, value in feeds.items()}


def assert_appended(case: Case, feeds: Feeds, present: Caches) -> None:
    """New values as they came, new keys with RoPE within its roundings, old ones untouched."""
    qkv = feeds["qkv"].reshape(*feeds["qkv"].shape[:2], -1, case.dim).transpose(0, 2, 1, 3).astype(np.float64)
    new = {"past_key": qkv[:, case.heads : -case.kv_heads], "past_value": qkv[:, -case.kv_heads :]}
    cos, sin = (angles.astype(np.float64) for angles in case.angles())
    for row, last in enumerate(feeds["seqlens_k"].tolist()):
        count = min(feeds["qkv"].shape[1], last + 1)
        at = np.arange(last + 1 - count, last + 1)
        for (name, rows), cache in zip(new.items(), present, strict=True):
            x = rows[row, :, :count]
            expected, off = x.copy(), np.zeros_like(x)
            if name == "past_key" and case.pairs:
                low, high = x[..., : case.pairs], x[..., case.pairs : 2 * case.pairs]
                expected[..., : case.pairs] = low * cos[at] - high * sin[at]
                expected[..., case.pairs : 2 * case.pairs] = high * cos[at] + low * sin[at]
                off[..., : 2 * case.pairs] = np.tile((np.abs(low) + np.abs(high)) * 2.0**-22, 2)
            assert_within(cache[row][:, at], expected, off)
            np.testing.assert_array_equal(cache[row][:, : at[0]], feeds[name][row][:, : at[0]])


@pytest.mark.parametrize("case", [*CASES.values(), *ONLY_KERNEL.values()], ids=[*CASES, *ONLY_KERNEL])
def test_equals_float64(case: Case) -> None:
    """A padded batch of prompts, steps, several tokens after a non-empty cache."""
    one, rng, caches = session(case.model(), library=True), np.random.default_rng(0), None
    for tokens, lengths in [(11, [11, 6]), (1, [12, 7]), (1, [13, 8]), (4, [17, 12])]:
        feeds = case.feeds(rng, lengths, tokens, caches)
        y, caches = run(one, feeds)
        assert_within(y, *exact(case, feeds, caches))
        assert_appended(case, feeds, caches)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_body_computes_the_same(case: Case) -> None:
    """As far as onnxruntime's operator goes: no padding, and a row by itself if several tokens follow others."""
    model = case.model()
    onnx.checker.check_model(model, full_check=True)
    one, body = session(model, library=True), session(model, library=False)
    rng, caches = np.random.default_rng(1), None
    for tokens, lengths in [(11, [11, 11]), (1, [12, 12]), (1, [13, 13]), (4, [17, 17])]:
        feeds = case.feeds(rng, lengths, tokens, caches)
        _, caches = run(one, feeds)
        expected, bound = exact(case, feeds, caches)
        for row, alone in enumerate(by_row(feeds)):
            y, present = run(body, alone)
            assert_within(y[0], expected[row], bound[row])
            assert_appended(case, alone, present)
            for cache, alike in zip(caches, present, strict=True):
                assert cache[row].shape == alike[0].shape


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("window", [0, 4])
def test_a_shared_buffer(library: bool, window: int) -> None:
    """Past and present in one buffer, as `runtime.cache` and onnxruntime-genai bind them; a window keeps all slots."""
    case, slots = Case(4, 2, 64, pairs=32, window=window, cache="F32"), 30
    one, rng = session(case.model(), library=library), np.random.default_rng(3)
    buffers = [np.full((1, 2, slots, 64), np.nan, np.float32) for _ in range(2)]  # slots beyond the tokens: no effect
    if not library:  # onnxruntime's operator multiplies them by 0
        buffers = [np.zeros_like(buffer) for buffer in buffers]
    caches: Caches | None = None
    for tokens, length in [(9, 9), (1, 10), (3, 13)]:
        feeds = case.feeds(rng, [length], tokens, caches)
        y, caches = run(one, feeds)
        expected, bound = exact(case, feeds, caches)
        io = one.io_binding()
        for name in ("qkv", "seqlens_k", "total_sequence_length"):
            io.bind_cpu_input(name, feeds[name])
        io.bind_output("y", "cpu")
        for part, buffer in zip(("key", "value"), buffers, strict=True):
            shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            io.bind_ortvalue_input(f"past_{part}", shared)
            io.bind_ortvalue_output(f"present_{part}", shared)
        one.run_with_iobinding(io)
        assert_within(y, expected, bound)
        assert_within(io.get_outputs()[0].numpy(), expected, bound)
        for buffer, cache in zip(buffers, caches, strict=True):
            np.testing.assert_array_equal(buffer[:, :, :length], cache)


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("window", [0, 3])
def test_not_finite(part: str, bad: float, window: int) -> None:
    """Seen by the queries of its KV head from its token on, within the window, and by nothing else."""
    case = Case(4, 2, 64, window=window, cache="F32")
    one = session(case.model(), library=True)
    feeds = case.feeds(np.random.default_rng(6), [9, 9], 9, None)
    clean, _ = run(one, feeds)
    feeds["qkv"].reshape(2, 9, 8, 64)[1, 5, 4 if part == "key" else 6, 3] = bad
    y, present = run(one, feeds)
    may = np.zeros((2, 9, 4, 64), bool)
    may[1, 5 : 5 + window if window else None, :2] = True
    may = may.reshape(y.shape)
    np.testing.assert_array_equal(y[~may], clean[~may])
    step, _ = run(one, case.feeds(np.random.default_rng(7), [10, 10], 1, present))
    assert np.isfinite(step[0]).all()
    if part == "key" and np.isinf(bad):
        return  # the score is infinite, with the sign of the query's element
    element = np.arange(y.shape[-1]) % 64 == 3
    np.testing.assert_array_equal(~np.isfinite(y), may & element if part == "value" else may)
    assert np.isfinite(step[1, 0, :128]).all() == (window > 0)


def test_errors() -> None:
    case = Case(4, 2, 64, pairs=32, positions=16, cache="F32")
    one = session(case.model(), library=True)
    good = case.feeds(np.random.default_rng(8), [8], 8, None)
    cases = {
        "seqlens_k: row 0 has 9 tokens; expected at most 8": {"seqlens_k": np.array([8], np.int32)},
        "seqlens_k: row 0 has 17 tokens; expected at most 16": case.feeds(np.random.default_rng(8), [17], 17, None),
        "past_value: expected the slots": {"past_value": np.zeros((1, 2, 3, 64), np.float32)},
        "past_key: expected shape": {"past_key": np.zeros((2, 2, 0, 64), np.float32)},
    }
    for message, feeds in cases.items():
        with pytest.raises(Exception, match=message):
            one.run(None, good | feeds)
    assert np.isfinite(run(one, good)[0]).all()


@pytest.mark.parametrize(("name", "value"), [("local_window_size", 0), ("scale", 0.0)])
def test_attributes_that_mean_something_else_to_the_body_are_rejected(name: str, value: float) -> None:
    model = Case(4, 2, 64, cache="F32").model()
    attribute = next(a for a in model.graph.node[0].attribute if a.name == name)
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))
    with pytest.raises(Exception, match="local_window_size -1 or at least 1, and scale finite and nonzero; got 4, 2,"):
        session(model, library=True)


@pytest.mark.parametrize("seed", range(int(os.environ.get("PROSPARSE_FUZZ_CASES", "12"))))
def test_random_cases(seed: int) -> None:
    rng = np.random.default_rng(10_000 + seed)
    kv_heads, dim = int(rng.integers(1, 4)), 8 * int(rng.integers(1, 17))
    window = int(rng.choice([0, 0, rng.integers(1, 40)]))
    pairs = int(rng.choice([0, dim // 2, dim // 4]))
    case = Case(kv_heads * int(rng.integers(1, 9)), kv_heads, dim, pairs, window, cache="F32")
    one = session(case.model(), library=True)
    body = session(case.model(), library=False) if dim % 16 == pairs % 8 == 0 else None
    rows, caches, lengths = int(rng.integers(1, 4)), None, np.zeros(0, int)
    for turn in range(3):
        tokens = int(rng.integers(1, 30)) if rng.random() < 0.6 else 1
        lengths = rng.integers(1, tokens + 1, rows) if turn == 0 else lengths + tokens
        feeds = case.feeds(rng, lengths.tolist(), tokens, caches)
        feeds["qkv"] *= np.float32(10.0 ** rng.uniform(-3, 1))
        y, present = run(one, feeds)
        expected, bound = exact(case, feeds, present)
        assert_within(y, expected, bound)
        assert_appended(case, feeds, present)
        if body is not None and rows == 1 and turn > 0:
            assert_within(run(body, feeds)[0], expected, bound)
        caches = present
