"""How the code is laid out: sizes that keep a file or function readable in one go."""

from __future__ import annotations

import ast
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


def test_few_modules_at_the_top_of_the_package() -> None:
    assert 0 < len(list((ROOT / "prosparse_export").glob("*.py"))) <= MOST_TOP_LEVEL
