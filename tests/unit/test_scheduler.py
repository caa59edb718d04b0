"""Continuous batching on the demo model: every text as `SparseModel.stream_text` writes it alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.detokenizer import Detokenizer
from prosparse_export.runtime.model import SparseModel, load
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.runtime.sampling import GREEDY, Sampler, Sampling
from prosparse_export.serve.job import Done, Event, Failed, Job, Piece
from prosparse_export.serve.metrics import Metrics
from prosparse_export.serve.prefix_cache import PrefixCache
from prosparse_export.serve.scheduler import Scheduler

TEXTS = ["The city of Paris is", "In 1905, ", "Water", "The river flows through the old town and " * 12, "A"]


@pytest.fixture(scope="module")
def model(demo_artifact: Path) -> SparseModel:
    return load(demo_artifact, threads=1)


class Server:
    """A scheduler with three rows, and its jobs."""

    def __init__(self, model: SparseModel, prefix_bytes: int = 0) -> None:
        self.model = model
        self.rows = RowBatch(model, 3, 512)
        self.metrics = Metrics()
        self.prefixes = PrefixCache(prefix_bytes)
        self.scheduler = Scheduler(self.rows, 3, model.stop, chunk=16, prefixes=self.prefixes, metrics=self.metrics)
        self.waiting: deque[Job] = deque()
        self.events: list[list[Event]] = []

    def job(
        self, text: str, new: int = 20, sampling: Sampling = GREEDY, stop: Sequence[str] = (), **options: float
    ) -> Job:
        assert self.model.tokenizer is not None
        self.events.append(events := [])
        ids = self.model.tokenizer.encode(text).ids
        detokenizer = Detokenizer(self.model.tokenizer, stop)
        job = Job(ids, new, Sampler(sampling, 1), detokenizer, events.append, **options)  # type: ignore[arg-type]
        self.waiting.append(job)
        return job

    def run(self, most: int = 500) -> None:
        for _ in range(most):
            if not (self.waiting or self.scheduler.busy):
                return
            self.scheduler.tick(self.waiting)
        raise AssertionError("the jobs do not end")

    def text(self, number: int) -> str:
        return "".join(event.text for event in self.events[number] if isinstance(event, Piece))


def test_more_texts_than_rows_of_different_lengths(model: SparseModel) -> None:
    server = Server(model)
    counts = [20, 5, 33, 7, 14]
    for text, count in zip(TEXTS, counts, strict=True):
        server.job(text, count)
    server.run()
    assert [server.text(i) for i in range(5)] == [
        model.generate(text, max_new_tokens=count) for text, count in zip(TEXTS, counts, strict=True)
    ]
    assert [events[-1] for events in server.events] == [Done("length", count, 0) for count in counts]


def test_sampled_texts_and_stop_strings(model: SparseModel) -> None:
    server = Server(model)
    for seed, text in enumerate(TEXTS):
        server.job(text, 20, Sampling(0.9, top_k=40, top_p=0.95, seed=seed), (" the",))
    server.run()
    assert [server.text(i) for i in range(5)] == [
        model.generate(text, max_new_tokens=20, sampling=Sampling(0.9, 40, 0.95, seed), stop=[" the"])
        for seed, text in enumerate(TEXTS)
    ]


def test_a_long_prompt_does_not_stop_the_others(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 20)
    server.scheduler.tick(server.waiting)
    long = server.job(TEXTS[3], 4)
    before = len(server.events[0])
    while not server.events[1]:
        server.scheduler.tick(server.waiting)
    chunks = -(-len(long.ids) // 16)
    assert chunks > 5
    assert len(server.events[0]) - before == chunks  # a step after each chunk


def test_a_cancelled_text_frees_its_row(model: SparseModel) -> None:
    server = Server(model)
    first = server.job(TEXTS[0], 200)
    second = server.job(TEXTS[1], 12)
    waiting = server.job(TEXTS[2], 12)
    for _ in range(3):
        server.scheduler.tick(server.waiting)
    first.cancelled = waiting.cancelled = True
    server.run()
    assert server.text(1) == model.generate(TEXTS[1], max_new_tokens=12)
    assert not isinstance(server.events[0][-1], Done)
    assert second.tokens
    assert server.rows.lengths == [0, 0, 0]


def test_a_text_is_given_up_at_its_deadline(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 20, deadline=time.monotonic() - 1)
    server.job(TEXTS[1], 4)
    server.run()
    (failed,) = server.events[0]
    assert isinstance(failed, Failed)
    assert failed.status == 408
    assert server.events[1][-1] == Done("length", 4, 0)


def test_known_prefixes_are_copied(model: SparseModel) -> None:
    server = Server(model, 1 << 24)
    begin = TEXTS[3]
    for _ in range(2):
        server.job(begin + "Then", 8)
        server.run()
    cached = [events[-1].cached_tokens for events in server.events if isinstance(events[-1], Done)]
    assert cached[0] == 0
    assert cached[1] >= 64
    assert cached[1] % 64 == 0
    assert server.text(1) == server.text(0) == model.generate(begin + "Then", max_new_tokens=8)


def test_a_text_whose_logits_are_not_finite_ends_alone(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 6)
    server.job(TEXTS[1], 6)
    for _ in range(2):
        server.scheduler.tick(server.waiting)
    step = server.rows.step

    def broken(tokens: Sequence[int]) -> np.ndarray:
        logits = step(tokens)
        logits[0] = np.nan
        return logits

    server.rows.step = broken  # type: ignore[method-assign]
    server.scheduler.tick(server.waiting)
    server.rows.step = step  # type: ignore[method-assign]
    server.run()
    assert isinstance(server.events[0][-1], Failed)
    assert server.text(1) == model.generate(TEXTS[1], max_new_tokens=6)


@pytest.mark.parametrize("method", ["prefill", "step"])
def test_a_text_whose_logits_are_not_finite_is_not_kept(model: SparseModel, method: str) -> None:
    server = Server(model, 1 << 24)
    right = getattr(server.rows, method)
    job = server.job(TEXTS[3], 20)
    job.ids = job.ids[:70] if method == "prefill" else job.ids[:60]
    if method == "step":
        while len(job.tokens) < 8:  # beyond the first block of 64
            server.scheduler.tick(server.waiting)
    setattr(server.rows, method, lambda *arguments: right(*arguments) * np.float32("nan"))
    server.run()
    assert isinstance(server.events[0][-1], Failed)
    assert server.prefixes.nbytes == 0


def test_a_prompt_that_onnxruntime_refuses_ends_alone(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 6)
    server.scheduler.tick(server.waiting)
    server.job(TEXTS[1], 6).ids = [10**6]
    server.run()
    assert isinstance(server.events[1][-1], Failed)
    assert server.text(0) == model.generate(TEXTS[0], max_new_tokens=6)


def test_all_texts_are_given_up(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 6)
    server.job(TEXTS[3], 6)
    for _ in range(2):
        server.scheduler.tick(server.waiting)
    assert server.scheduler.busy == 2
    server.scheduler.fail(ProSparseError("broken", hint="repair"), 503)
    assert [events[-1].status for events in server.events if isinstance(events[-1], Failed)] == [503, 503]
    assert server.scheduler.busy == 0
    assert server.rows.lengths == [0, 0, 0]


def test_log_probabilities(model: SparseModel) -> None:
    server = Server(model)
    server.job(TEXTS[0], 3).top_logprobs = 5
    server.run()
    pieces = [event for event in server.events[0] if isinstance(event, Piece)]
    assert len(pieces) == 3
    assert model.tokenizer is not None
    ids = np.array([model.tokenizer.encode(TEXTS[0]).ids])
    logits = model.forward(ids, np.ones_like(ids))[0][0, -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    told = pieces[0].logprobs
    assert told is not None
    assert [token for token, _ in told.top] == np.argsort(-expected, kind="stable")[:5].tolist()
    np.testing.assert_allclose([value for _, value in told.top], np.sort(expected)[::-1][:5], rtol=0, atol=1e-3)
    assert told.token == told.top[0]  # greedy
