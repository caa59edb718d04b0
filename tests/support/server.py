"""A server of `prosparse serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('unknown role ' ~ m.role) }}{% endif %}
{{ m.content }}
{% endfor %}"""

# The demo model ends its texts soon; with this schema they cannot end.
ENDLESS = {"type": "array", "minItems": 5000, "items": {"enum": [1]}}
LONG = {
    "model": "demo",
    "prompt": "A",
    "response_format": {"type": "json_schema", "json_schema": {"name": "ones", "schema": ENDLESS}},
}


@dataclass
class Server:
    """Its process, its address, and what it has printed."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "".join(self.lines)


@contextlib.contextmanager
def serving(artifact: Path, *options: object, **environment: str) -> Iterator[Server]:
    """Run a server on a free port of the loopback interface until the block ends."""
    command = [sys.executable, "-m", "prosparse_export", "serve", str(artifact), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, *map(str, options)], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    server = Server(process, "")
    try:
        for line in process.stderr:
            server.lines.append(line)
            if found := re.search(r"at (http://127\.0\.0\.1:\d+)/v1", line):
                server.url = found[1]
                break
        assert server.url, server.log
        reader = threading.Thread(target=server.lines.extend, args=(process.stderr,), daemon=True)
        reader.start()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
