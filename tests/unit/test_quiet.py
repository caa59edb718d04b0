"""Silence is made in one place, and ends."""

from __future__ import annotations

import logging
import warnings

import pytest
from conftest import ROOT

from prosparse_export.quiet import quiet


def test_only_quiet_disables_logging() -> None:
    folders = (ROOT / "prosparse_export", ROOT / "graph_passes", ROOT / "models" / "prosparse_models")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path.name for path in files if "logging.disable(" in path.read_text(encoding="utf-8")] == ["quiet.py"]


def test_silences_warnings_and_log_lines_inside(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("a library")
    log.addHandler(logging.StreamHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            log.error("hidden")
            warnings.warn("hidden", stacklevel=1)
    log.error("shown")
    assert "hidden" not in capsys.readouterr().err
    assert logging.root.manager.disable < logging.ERROR
