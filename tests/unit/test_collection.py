"""Garbage collection pauses and goes on as before, also after an error."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from prosparse_export.collection import collection_paused


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("was_on", [True, False])
def test_it_pauses_and_goes_on(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    with pytest.raises(RuntimeError, match="False"):
        _fail()
    assert gc.isenabled() == was_on


def _fail() -> None:
    with collection_paused():
        raise RuntimeError(gc.isenabled())
