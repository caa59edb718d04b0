"""How the code is laid out: sizes that keep a file or function readable in one go.

A Python function counts from its `def`: decorators, such as the option tables of the commands, do not count.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ["prosparse_export", "graph_passes", "models", "native", "benchmarks", "tests"]
CODE = [
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cc", ".h", ".inc")
]
MOST_LINES, MOST_FUNCTION_LINES, MOST_TOP_LEVEL = 300, 60, 10


def test_no_file_is_too_long() -> None:
    assert CODE
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in CODE}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("package", [name for name in FOLDERS if name != "native"])
def test_no_function_is_too_long(package: str) -> None:
    files = [name for name in CODE if name.startswith(f"{package}/") and name.endswith(".py")]
    assert files
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name in files
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: count for name, count in lengths.items() if count > MOST_FUNCTION_LINES} == {}


def _continues(text: str, before: str) -> bool:
    return text.count(")") > text.count("(") or text.lstrip().startswith(":") or before.endswith((",", "("))


def native_function_lengths(text: str) -> dict[str, int]:
    """Lines of each C++ function (and loop) by its first line; relies on clang-format's indentation."""
    lines, lengths = text.splitlines(), {}
    for opening, line in enumerate(lines):
        start = opening
        while _continues("\n".join(lines[start : opening + 1]), lines[start - 1]):
            start -= 1  # a signature of several lines, or a constructor's initializers
        first = lines[start].strip()
        if not line.endswith("{") or "(" not in first or first.startswith(("//", "}", "struct", "class", "enum")):
            continue
        closing = re.compile(lines[start][: len(lines[start]) - len(first)] + "}")
        end = next((i for i in range(opening + 1, len(lines)) if closing.match(lines[i])), len(lines))
        lengths[first] = end - start + 1
    return lengths


def test_no_native_function_is_too_long() -> None:
    files = [name for name in CODE if name.startswith("native/")]
    lengths = {
        f"{name}: {function}": count
        for name in files
        for function, count in native_function_lengths((ROOT / name).read_text(encoding="utf-8")).items()
    }
    assert len(lengths) > 100
    assert {name: count for name, count in lengths.items() if count > MOST_FUNCTION_LINES} == {}


def test_native_functions_are_measured() -> None:
    text = """void f(int a,
       int b) {
  if (a) {
    b();
  }
}
struct S {
  S(int a)
      : b(a),
        c(a) {
    h();
  }
};
"""
    assert native_function_lengths(text) == {"void f(int a,": 6, "if (a) {": 3, "S(int a)": 5}


def test_few_modules_at_the_top_of_the_package() -> None:
    assert 0 < len(list((ROOT / "prosparse_export").glob("*.py"))) <= MOST_TOP_LEVEL
