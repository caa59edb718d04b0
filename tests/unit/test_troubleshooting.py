"""docs/troubleshooting.md quotes messages that the code can print."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ("prosparse_export", "graph_passes", "models/prosparse_models")
NATIVE = ("native/src", "native/ort")
PAGE = ROOT / "docs" / "troubleshooting.md"
FILLED_IN = "\0"  # the place of a value in a message
_LITERAL = r'"(?:[^"\\\n]|\\.)*"'


def _python_messages(text: str) -> list[str]:
    """Strings and f-strings without docstrings; the parser joins adjacent literals."""
    tree = ast.parse(text)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [value.value if isinstance(value, ast.Constant) else FILLED_IN for value in node.values]
            found.append("".join(map(str, values)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements | parts:
            found.append(node.value)
    return found


def _native_messages(text: str) -> list[str]:
    """Sums of literals and values: what stands between two literals of an expression is filled in."""
    code = re.sub(r"^ *//.*$", "", text, flags=re.MULTILINE)
    joined = re.sub(r'"\s+"', "", code)
    sums = re.findall(rf"{_LITERAL}(?:[^\";]*\+[^\";]*(?:{_LITERAL})?)*", joined)
    return [
        "".join(part[1:-1] if part.startswith('"') else FILLED_IN for part in re.split(f"({_LITERAL})", text) if part)
        for text in sums
    ]


def is_printed(heading: str, messages: list[str]) -> bool:
    """Whether one message contains the heading, with a value in the place of each `...`."""
    pattern = re.compile(f"{FILLED_IN}+".join(map(re.escape, heading.split("..."))))
    return any(pattern.search(message) for message in messages)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    found = []
    for folders, suffix, read in ((PYTHON, "*.py", _python_messages), (NATIVE, "*.cc", _native_messages)):
        for path in [path for folder in folders for path in sorted((ROOT / folder).rglob(suffix))]:
            found += read(path.read_text(encoding="utf-8"))
    return found


def test_every_heading_is_a_message(messages: list[str]) -> None:
    headings = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 20
    assert [heading for heading in headings if not is_printed(heading, messages)] == []


def test_a_heading_made_of_two_messages_is_found() -> None:
    text = '''def f(path):
    """manifest: x: a docstring."""
    raise ProSparseError(f"manifest: {path}: expected a prosparse.json "
                         f"beside {path}", hint="copy the folder")
'''
    messages = _python_messages(text)
    assert is_printed("manifest: ...: expected a prosparse.json beside ...", messages)
    assert is_printed("copy the folder", messages)
    for wrong in ("manifest: ... copy the folder", "manifest: ...: a docstring", "expected a ... beside", "copy ..."):
        assert not is_printed(wrong, messages), wrong


def test_native_messages_are_joined() -> None:
    text = """  // no "message"
  throw Error(what + ": expected " +
              to_string(n) + " rows, "
              "got " + m);
"""
    messages = _native_messages(text)
    assert is_printed(": expected ... rows, got ...", messages)
    assert not is_printed("expected rows", messages)
    assert not is_printed("message", messages)
