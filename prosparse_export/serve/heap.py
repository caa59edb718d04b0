"""Keep glibc's heap small under many threads."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["bound_heap"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_ names of mallopt(3)
_LARGE = 4 << 20  # bytes: above a step's arrays, below bodies and the work of tokenizing long prompts


def bound_heap() -> None:
    """Let the whole process share one heap, and return large blocks to the operating system; glibc only.

    By default each thread may get a heap of its own, and each keeps what its largest request needed: a server's memory
    grows until every thread has seen the worst one. Call this before threads start.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE)):
            mallopt(parameter, value)
