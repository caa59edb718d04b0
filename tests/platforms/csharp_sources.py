"""onnxruntime's C# sources in the C# that Debian's compiler (mono-mcs) knows: 7.2 and a part of 7.3.

The substitutions change syntax only, except for ``using``: what a block disposes at its end is left to the garbage
collector.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["lower_sources"]

_SUBSTITUTIONS = (
    (r"\b(\w+) is null\b", r"\1 == null"),
    (r"\(([\w.]+) is not (\w+)\)", r"(!(\1 is \2))"),
    (r"\busing var\b", "var"),
    (r"\(static (\w+ =>)", r"(\1"),
    (r"(\w+(?:<\w+>)?) (\w+) = new\(", r"\1 \2 = new \1("),
    (r"(where \w+ : )unmanaged", r"\1struct"),
    # The compiler fails on assignments of and through references that a property returns.
    (r"([\w.]+\.Span)(\[\w+\] = [\w.]+;)", r"{ var span = \1; span\2 }"),
    (r"([\w.\[\]]+) = ([\w.\[\]]+) = (\w+);", r"\2 = \3; \1 = \2;"),
)


def lower_sources(sources: Path, folder: Path) -> list[Path]:
    """Write all sources but those for training to ``folder``; return their paths."""
    folder.mkdir()
    lowered = []
    for source in sources.rglob("*.cs"):
        if "Training" in source.parts:
            continue
        text = source.read_text(encoding="utf-8-sig")
        for pattern, replacement in _SUBSTITUTIONS:
            text = re.sub(pattern, replacement, text)
        lowered.append(folder / source.name)
        lowered[-1].write_text(text, encoding="utf-8")
    return lowered
