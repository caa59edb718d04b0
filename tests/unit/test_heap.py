"""Threads of a server share one heap."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ARENAS = """
import ctypes, threading
from prosparse_export.serve.heap import bound_heap
{call}
threads = [threading.Thread(target=lambda: [bytes(100_000) for _ in range(200)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("bound", [True, False])
def test_threads_share_one_heap(bound: bool) -> None:
    code = ARENAS.format(call="bound_heap()" if bound else "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stderr.count("Arena ") == 1) == bound, done.stderr
