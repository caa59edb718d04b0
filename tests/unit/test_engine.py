"""The queue in front of the scheduler, and its thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.serve.engine import Engine, QueueFullError
from prosparse_export.serve.job import Failed


class Texts:
    """A scheduler that takes one job per tick when it may, and can fail."""

    def __init__(self) -> None:
        self.go, self.busy, self.mean_seconds = threading.Event(), 0, 3.0
        self.seen: list[Any] = []
        self.failed: list[tuple[str, int]] = []
        self.error: Exception | None = None

    def tick(self, waiting: deque[Any]) -> None:
        self.go.wait(10)
        self.seen.append(waiting.popleft())
        if self.error is not None:
            raise self.error

    def fail(self, error: ProSparseError, status: int = 500) -> None:
        self.failed.append((str(error), status))


class Text:
    def __init__(self) -> None:
        self.told: list[Any] = []
        self.emit = self.told.append


def made(max_queue: int = 4) -> tuple[Texts, Any]:
    texts = Texts()
    return texts, Engine(texts, max_queue)  # type: ignore[arg-type]


def wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 5 seconds")


def test_jobs_run_in_order() -> None:
    texts, engine = made()
    jobs = [Text() for _ in range(4)]
    engine.submit(jobs)
    texts.go.set()
    engine.start()
    wait_for(lambda: len(texts.seen) == 4)
    engine.stop()
    assert texts.seen == jobs
    assert not engine.alive


def test_a_full_queue_takes_all_or_none() -> None:
    _, engine = made()
    engine.submit([Text(), Text(), Text()])
    with pytest.raises(QueueFullError, match="queue is full: 3 waiting, 2 requested, limit 4"):
        engine.submit([Text(), Text()])
    assert engine.waiting == 3
    engine.submit([Text()])


@pytest.mark.parametrize(("error", "told"), [(ProSparseError("no memory", hint="-"), "no memory"), (OSError(), "gen")])
def test_an_error_ends_the_running_texts_alone(error: Exception, told: str) -> None:
    texts, engine = made()
    texts.error = error
    engine.submit([Text()])
    texts.go.set()
    engine.start()
    wait_for(lambda: texts.failed)
    assert texts.failed[0][0].startswith(told)
    texts.error = None
    engine.submit([Text()])
    wait_for(lambda: len(texts.seen) == 2)
    assert engine.alive
    engine.stop()


def test_waiting_jobs_are_told_of_the_end() -> None:
    _, engine = made()
    job = Text()
    engine.submit([job])
    engine._stopped = True
    engine.start()
    wait_for(lambda: job.told)
    (failed,) = job.told
    assert isinstance(failed, Failed)
    assert failed.status == 503


def test_the_time_until_the_queue_has_room_is_estimated() -> None:
    _, engine = made()
    assert engine.seconds_until_free(1) == 3
    engine.submit([Text(), Text(), Text()])
    assert engine.seconds_until_free(2) == 6
    assert engine.seconds_until_free(100) == 1
