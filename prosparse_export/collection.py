"""Python's cyclic garbage collector, paused where many objects are made that stay."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused", "no_collection_at_exit"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collector: while modules are imported or a model is traced, it walks the same objects again and again.

    Objects without cycles are freed as ever, the others once the collector runs again. If it was off, it stays off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def no_collection_at_exit() -> None:
    """Let the process end without a last collection: of what torch and transformers make, it takes two seconds."""
    atexit.register(gc.freeze)
