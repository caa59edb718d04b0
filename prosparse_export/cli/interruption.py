"""Ctrl-C and other signals. Libraries may drop an exception raised in their callbacks, so it is raised again later."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruptible", "raise_if_interrupted"]

_arrived: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT, SIGTERM, and SIGHUP unwind the stack, at once or at the next `raise_if_interrupted`."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # Windows has none
        numbers.append(signal.SIGHUP)
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    previous = {number: signal.signal(number, _arrive) for number in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _arrived.clear()


def raise_if_interrupted() -> None:
    """Raise the exception of an earlier signal again if it was dropped.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: for other signals, with exit code 128 + signal number.
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
