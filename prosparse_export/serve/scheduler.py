"""Continuous batching: which row computes what next.

A tick is one chunk of one prompt, then one decode step of all running texts. New texts join between steps and ended
ones leave, so nobody waits for a long prompt or for the longest text of a batch.

Running texts occupy the first rows. A prompt is computed in the last row, which is free as long as there is room, and
moves to the end of the running ones. When a text ends, the last running one takes its row.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.runtime.sampling import NotFiniteError
from prosparse_export.serve.job import Failed, Job
from prosparse_export.serve.metrics import Metrics
from prosparse_export.serve.prefix_cache import PrefixCache

__all__ = ["Scheduler"]

_log = logging.getLogger("prosparse.serve")


class Scheduler:
    """Runs jobs in the rows of a cache. Not thread-safe, except that `Job.cancelled` may be set at any time.

    Args:
        rows: the cache.
        stop: tokens that end a text.
        chunk: tokens of a prompt per tick while other texts decode; a prompt alone runs in larger chunks.
        prefixes: prompts computed before.
        metrics: counts what was done.
        capacity: number of rows in ``rows``.
    """

    def __init__(
        self,
        rows: RowBatch,
        capacity: int,
        stop: frozenset[int],
        *,
        chunk: int,
        prefixes: PrefixCache,
        metrics: Metrics,
    ) -> None:
        self._rows = rows
        self._stop = stop
        self._chunk = chunk
        self._prefixes = prefixes
        self._metrics = metrics
        self._capacity = capacity
        self._running: list[Job] = []  # the job of each row
        self._starting: Job | None = None  # its prompt is being computed in the last row
        self.mean_seconds = 1.0  # from arrival to end, of texts that ended lately

    @property
    def busy(self) -> int:
        """Number of jobs that have a row."""
        return len(self._running) + (self._starting is not None)

    def tick(self, waiting: deque[Job]) -> None:
        """Start, continue and end jobs; ``waiting`` is the queue, first come, first served."""
        self._drop(waiting)
        if self._starting is None and waiting and len(self._running) < self._capacity:
            self._start(waiting.popleft())
        if self._starting is not None:
            self._prefill(self._starting)
        if self._running:
            self._step()

    def fail(self, error: ProSparseError, status: int = 500) -> None:
        """Give all jobs up; ``status`` is HTTP's."""
        for job in [*self._running, *([self._starting] if self._starting else [])]:
            job.emit(Failed(error, status))
        self._running, self._starting = [], None
        for row in range(self._capacity):
            self._rows.truncate(row, 0)

    def _drop(self, waiting: deque[Job]) -> None:
        """Drop jobs that were cancelled or have reached their time limit."""
        now = time.monotonic()
        for job in [job for job in list(waiting) if _is_over(job, now)]:  # a copy: other threads append
            waiting.remove(job)
        if self._starting is not None and _is_over(self._starting, now):
            self._starting = None
        self._leave([row for row, job in enumerate(self._running) if _is_over(job, now)])

    def _start(self, job: Job) -> None:
        last = self._capacity - 1
        self._rows.truncate(last, 0)
        for block in self._prefixes.find(job.ids):
            self._rows.write(last, block)
        job.cached = self._rows.lengths[last]
        self._starting = job
        self._metrics.prompt(len(job.ids), job.cached)

    def _prefill(self, job: Job) -> None:
        last = self._capacity - 1
        begin = self._rows.lengths[last]
        chunk = self._chunk if self._running else PREFILL_TOKENS
        part = job.ids[begin : begin + chunk]
        try:
            logits = self._rows.prefill(last, part)
        except ProSparseError as error:
            self._starting = None
            job.emit(Failed(error))
            return
        if begin + len(part) < len(job.ids):
            return
        self._starting = None
        self._metrics.first_token(time.monotonic() - job.arrived)
        ended = self._guarded(job, lambda: job.choose(logits, self._stop))
        self._keep_prefix(job, last)
        if not ended:
            self._rows.move(last, len(self._running))
            self._running.append(job)

    def _step(self) -> None:
        began = time.monotonic()
        logits = self._rows.step([job.tokens[-1] for job in self._running])
        ended = [
            row
            for row, job in enumerate(self._running)
            if self._guarded(job, lambda job=job, row=row: job.choose(logits[row], self._stop))  # type: ignore[misc]
        ]
        self._metrics.step(len(self._running), time.monotonic() - began)
        for row in ended:
            self.mean_seconds += 0.1 * (time.monotonic() - self._running[row].arrived - self.mean_seconds)
            self._keep_prefix(self._running[row], row)
        self._leave(ended)

    def _guarded(self, job: Job, choose: Callable[[], bool]) -> bool:
        """Return whether the job ended; an error of its own ends it alone."""
        try:
            return choose()
        except NotFiniteError as error:
            job.emit(Failed(error))
        except Exception as error:  # of the tokenizer or the grammar, from this job's input
            _log.exception("a sequence failed")
            job.emit(Failed(ProSparseError(f"generation failed: {type(error).__name__}", hint="see the server's log")))
        return True

    def _keep_prefix(self, job: Job, row: int) -> None:
        ids, computed = [*job.ids, *job.tokens], self._rows.lengths[row]
        if len(ids) > computed:  # the last token was chosen, but not run; none is chosen from logits like NaN
            self._prefixes.add(ids[:computed], lambda begin, end: self._rows.read(row, begin, end))

    def _leave(self, ended: list[int]) -> None:
        """Free rows, in ascending order, and close the gaps."""
        for row in reversed(ended):
            last = len(self._running) - 1
            self._rows.truncate(row, 0)
            self._rows.move(last, row)
            self._running[row] = self._running[last]
            self._running.pop()


def _is_over(job: Job, now: float) -> bool:
    if not job.cancelled and now >= job.deadline:
        error = ProSparseError(
            "request: the time limit was reached before the answer was complete",
            hint="request fewer tokens, or restart the server with a larger --timeout",
        )
        job.emit(Failed(error, 408))
        return True
    return job.cancelled
