"""Tables in docs that tests generate."""

from __future__ import annotations

import os
from pathlib import Path

MARK = "\n<!-- generated above this line -->\n"


def check_table(path: Path, text: str) -> None:
    """Fail unless the generated part of ``path`` is ``text``; with PROSPARSE_WRITE_TABLES set, write it instead."""
    current = path.read_text(encoding="utf-8") if path.is_file() else MARK
    generated, mark, rest = current.partition(MARK)
    if os.environ.get("PROSPARSE_WRITE_TABLES"):
        path.write_text(text + MARK + rest, encoding="utf-8")
        return
    assert mark, f"{path} has no line {MARK.strip()}"
    assert generated == text, f"{path.name} is not current: PROSPARSE_WRITE_TABLES=1 pytest {__name__} writes it"
