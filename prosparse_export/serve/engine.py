"""The thread that runs the scheduler, and the bounded queue in front of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from prosparse_export.errors import ProSparseError
from prosparse_export.serve.job import Failed, Job
from prosparse_export.serve.scheduler import Scheduler

__all__ = ["Engine", "QueueFullError"]

_log = logging.getLogger("prosparse.serve")
_STOPPING = ProSparseError("the server is shutting down", hint="send the request to another replica")


class QueueFullError(ProSparseError):
    """There is no room in the queue."""


class Engine:
    """Accepts jobs from any thread and runs them.

    Args:
        scheduler: runs the jobs; used by this object's thread alone.
        max_queue: maximum number of waiting jobs.
    """

    def __init__(self, scheduler: Scheduler, max_queue: int) -> None:
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    @property
    def waiting(self) -> int:
        """Jobs without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs with a row."""
        return self._scheduler.busy

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def seconds_until_free(self, rows: int) -> int:
        """Estimate in how many seconds the queue has room again, 1 to 60, from the texts that ended lately."""
        return min(60, max(1, round(self._scheduler.mean_seconds * (self.waiting + 1) / rows)))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Give all jobs up and end the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all jobs or none.

        Raises:
            QueueFullError: there is no room for them.
        """
        with self._wake:
            if self._stopped:
                for job in jobs:
                    job.emit(Failed(_STOPPING, 503))
                return
            waiting, more = len(self._waiting), len(jobs)
            if waiting + more > self._max_queue:
                raise QueueFullError(
                    f"The queue is full: {waiting} waiting, {more} requested, limit {self._max_queue}",
                    hint="retry later",
                )
            self._waiting.extend(jobs)
            self._wake.notify()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._stopped or self._waiting or self._scheduler.busy):
                    self._wake.wait()
                if self._stopped:
                    break
            try:
                self._scheduler.tick(self._waiting)
            except ProSparseError as error:
                _log.error("all running sequences failed: %s", error)
                self._scheduler.fail(error)
            except Exception:
                _log.exception("all running sequences failed")
                self._scheduler.fail(ProSparseError("generation failed", hint="see the server's log"))
        self._scheduler.fail(_STOPPING, 503)
        while self._waiting:
            self._waiting.popleft().emit(Failed(_STOPPING, 503))
