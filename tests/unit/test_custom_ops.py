"""The operators' domain is named in one place."""

from __future__ import annotations

import ast

from conftest import ROOT

from graph_passes.custom_ops import DOMAIN


def test_the_domain_is_written_once() -> None:
    folders = (ROOT / "prosparse_export", ROOT / "graph_passes", ROOT / "models" / "prosparse_models")
    found = [
        path.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == DOMAIN
    ]
    assert found == ["custom_ops.py"]
