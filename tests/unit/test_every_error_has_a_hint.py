"""Every error that a user can cause says what to do next: read from the source, so that none is forgotten."""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

ERRORS = {"ProSparseError", "CheckpointError", "TrainingError"}
FOLDERS = (ROOT / "prosparse_export", ROOT / "models" / "prosparse_models")


def without_hint(source: str) -> list[int]:
    """Lines that make an error of ours without a hint; ``hint=error.hint`` passes another error's on."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in ERRORS:
            continue
        hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"] + node.args[1:]
        if not any(ast.unparse(hint) not in ("None", "''") for hint in hints):
            lines.append(node.lineno)
    return lines


def test_every_error_has_a_hint() -> None:
    files = [path for folder in FOLDERS for path in folder.rglob("*.py")]
    assert len(files) > 80
    calls = sum(path.read_text(encoding="utf-8").count("Error(") for path in files)
    assert calls > 150
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in without_hint(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("raise ProSparseError('x')", [1]),
        ("raise ProSparseError('x', hint=None)", [1]),
        ("raise ProSparseError('x', hint='y')", []),
        ("raise errors.CheckpointError('x', 'y')", []),
        ("try:\n    f()\nexcept E as e:\n    raise TrainingError(str(e)) from e", [4]),
        ("raise ValueError('x')", []),
    ],
)
def test_the_search_itself(source: str, lines: list[int]) -> None:
    assert without_hint(source) == lines
