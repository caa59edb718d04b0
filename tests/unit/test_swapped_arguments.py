"""The model and the other argument in the wrong order: one line, and the right order as a hint."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prosparse_export.cli import main


@pytest.mark.parametrize("exists", [False, True])
def test_export(exists: bool, tmp_path: Path) -> None:
    graph = tmp_path / "m.onnx"
    if exists:
        graph.write_bytes(b"graph")
    result = CliRunner().invoke(main, ["export", str(graph), str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: model folder: {graph}: expected a folder, got an .onnx file",
        "hint: pass the model folder first, then the .onnx file",
    ]


def test_generate(tmp_path: Path) -> None:
    graph = tmp_path / "m.onnx"
    graph.write_bytes(b"graph")
    result = CliRunner().invoke(main, ["generate", "The city of Paris is " * 30, str(graph)])
    assert result.exit_code == 1
    assert "expected the .onnx file before the prompt" in result.stderr
    assert "hint: pass the .onnx file first, then the prompt" in result.stderr
