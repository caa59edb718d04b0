"""Every error that a user can cause says what to do next: read from the source, so that none is forgotten."""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

ERRORS = {"ProSparseError", "CheckpointError", "TrainingError", "NotFiniteError"}
FOLDERS = (ROOT / "prosparse_export", ROOT / "graph_passes", ROOT / "models" / "prosparse_models")


def without_hint(source: str) -> list[int]:
    """Lines that make an error of ours without a hint; ``hint=error.hint`` passes another error's on.

    ``hint = None`` counts too. A subclass with its own ``__init__`` gives its hint to ``super().__init__``.
    """
    lines = []
    tree = ast.parse(source)
    own = {call for part in ast.walk(tree) if _is_error_class(part) for call in _super_inits(part)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_empty_hint(node):
            lines.append(node.lineno)
        if not isinstance(node, ast.Call):
            continue
        if node not in own and ast.unparse(node.func).rpartition(".")[2] not in ERRORS:
            continue
        hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"] + node.args[1:]
        if not any(ast.unparse(hint) not in ("None", "''") for hint in hints):
            lines.append(node.lineno)
    return lines


def _is_error_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).rpartition(".")[2] in ERRORS for base in node.bases)


def _super_inits(node: ast.AST) -> list[ast.Call]:
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == "super().__init__"]


def _is_empty_hint(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return ast.unparse(targets[0]) == "hint" and node.value is not None and ast.unparse(node.value) in ("None", "''")


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
        ("hint = None\nhint: str | None = None", [1, 2]),
        ("raise NotFiniteError('x')", [1]),
        ("class E(ProSparseError):\n  def __init__(self, x):\n    super().__init__(x)", [3]),
        ("class E(ProSparseError):\n  def __init__(self, x):\n    super().__init__(x, hint='y')", []),
        ("class E(ValueError):\n  def __init__(self, x):\n    super().__init__(x)", []),
    ],
)
def test_the_search_itself(source: str, lines: list[int]) -> None:
    assert without_hint(source) == lines
