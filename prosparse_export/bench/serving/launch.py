"""Start `prosparse serve` in a process of its own, and end it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prosparse_export.errors import ProSparseError

__all__ = ["launched"]


@contextmanager
def launched(path: Path, options: Sequence[str]) -> Iterator[str]:
    """Yield the URL of a server for the artifact ``path`` on a free port.

    Args:
        path: the graph.
        options: more options of `prosparse serve`.

    Raises:
        ProSparseError: the server does not start.
    """
    command = [sys.executable, "-m", "prosparse_export", "serve", str(path), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"^serving .* at (http://\S+)$", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()  # or a full pipe would stop it
                yield found[1]
                return
        raise ProSparseError(
            f"serve: {path}: the server did not start: {' '.join(' '.join(lines).split())}",
            hint="run `prosparse serve` by itself to see why",
        )
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
