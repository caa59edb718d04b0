"""Garbage collection pauses and goes on as before, also after an error."""

from __future__ import annotations

import gc
import subprocess
import sys
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


@pytest.mark.parametrize("spared", [True, False])
def test_cycles_are_not_collected_at_exit(spared: bool) -> None:
    program = """
import sys
from prosparse_export.collection import no_collection_at_exit

class Node:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("collected")

if sys.argv[1] == "True":
    no_collection_at_exit()
node = Node()
"""
    run = subprocess.run([sys.executable, "-c", program, str(spared)], capture_output=True, text=True, check=True)
    assert run.stdout == ("" if spared else "collected\n")
