"""Ctrl-C and its like, so that none is lost: libraries drop exceptions that a signal raises inside their callbacks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruptible", "raise_if_interrupted"]

_arrived: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP unwind the stack, at once or, if that is lost, at `raise_if_interrupted`."""
    _arrived.clear()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    previous = {number: signal.signal(number, _arrive) for number in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise what a signal raised before, if that went nowhere.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: for the others, with the exit code that shells expect.
    """
    if _arrived:
        _unwind(_arrived[0])


def _arrive(number: int, _: FrameType | None) -> None:
    _arrived.append(number)
    _unwind(number)


def _unwind(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
