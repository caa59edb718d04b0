"""The summary of a load."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prosparse_export.bench.serving.load import _work
from prosparse_export.bench.serving.render import as_text
from prosparse_export.bench.serving.result import LoadOptions, LoadResult, Request, summarize


def test_throughput_and_latencies() -> None:
    answered = [Request(10.0, 0.5, (0.1, 0.3), 12.0, 100, 3), Request(11.0, 1.5, (0.2,), 14.0, 50, 5)]
    point = summarize("clients", 2, answered, 1)
    assert point.tokens_per_second == pytest.approx(8 / 4)
    assert (point.requests, point.refused, point.prompt_tokens) == (2, 1, 75)
    assert (point.first_token.p50, point.between_tokens.p50) == (pytest.approx(1.0), pytest.approx(0.2))
    assert point.first_token.p99 == pytest.approx(1.49)
    text = as_text(LoadResult("http://h/v1", "m", (point,)))
    assert "clients: 2" in text
    assert "1000 / 1450 / 1490" in text


def test_nothing_was_answered() -> None:
    point = summarize("requests/s", 5, [], 3)
    assert (point.tokens_per_second, point.refused) == (0, 3)
    assert math.isnan(point.first_token.p50)


def test_lengths_have_the_medians_and_a_seed() -> None:
    ids = np.arange(5000)
    options = LoadOptions(prompt=100, answer=40, spread=0.5)
    work = _work(ids, options, 4096, 400, np.random.default_rng(1))
    assert np.median([len(item.ids) for item in work]) == pytest.approx(100, rel=0.15)
    assert np.median([item.count for item in work]) == pytest.approx(40, rel=0.15)
    assert max(len(item.ids) for item in work) <= 400
    assert work == _work(ids, options, 4096, 400, np.random.default_rng(1))
    fixed = _work(ids, LoadOptions(spread=0.0), 4096, 9, np.random.default_rng(1))
    assert {(len(item.ids), item.count) for item in fixed} == {(128, 64)}
    short = _work(ids, LoadOptions(prompt=100, answer=40, spread=2.0), 150, 400, np.random.default_rng(1))
    assert max(len(item.ids) + item.count for item in short) == 150
