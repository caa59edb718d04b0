"""A signal whose exception a library drops is not lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from prosparse_export.cli.display import stages
from prosparse_export.cli.interruption import interruptible, raise_if_interrupted

RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
if hasattr(signal, "SIGHUP"):
    RAISED[signal.SIGHUP] = SystemExit


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Under nohup, SIGHUP is ignored; these tests must not depend on it."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in RAISED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def dropped(number: int) -> None:
    """What a callback in a library does to an exception."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)
        for _ in range(1000):  # Python runs handlers between its own instructions
            pass


@pytest.mark.parametrize("number", RAISED, ids=lambda n: signal.Signals(n).name)
@pytest.mark.parametrize("quiet", [True, False])
def test_the_next_progress_call_raises_it_again(number: int, quiet: bool) -> None:
    before = signal.getsignal(number)
    with interruptible(), stages(quiet=quiet) as progress:
        progress("trace", 0, 0)
        dropped(number)
        with pytest.raises(RAISED[number]) as caught:
            progress("publish", 0, 0)
    if number != signal.SIGINT:
        assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_the_next_command_begins_anew() -> None:
    with interruptible():
        dropped(signal.SIGTERM)
    raise_if_interrupted()
    with interruptible():
        raise_if_interrupted()


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does to SIGHUP
    with interruptible():
        signal.raise_signal(signal.SIGTERM)
        raise_if_interrupted()


def test_windows_has_no_sighup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    with interruptible(), pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
