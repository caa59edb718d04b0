"""Freed memory goes back to the system before an artifact's weights come: an allocator would keep it."""

from __future__ import annotations

import contextlib
import ctypes
import gc

__all__ = ["give_back"]


def give_back() -> None:
    """Collect garbage, then let the C library return free pages: glibc keeps hundreds of megabytes after tracing.

    Elsewhere than on glibc only the first.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # malloc_trim(3)
