"""Commands that open an artifact name a missing file first."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prosparse_export.cli import main


@pytest.mark.parametrize("command", [["generate"], ["chat"], ["serve"], ["bench"], ["bench", "--serve"]], ids=" ".join)
def test_a_missing_model_is_named(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    prompt = ["A"] if command == ["generate"] else []
    result = CliRunner().invoke(main, [*command, str(path), *prompt])
    assert result.exit_code == 1
    assert f"error: model: {path}: no such file" in result.stderr
