"""prosparse-lm-eval without the extra [eval]."""

from __future__ import annotations

import pytest

from prosparse_export.cli import extras, lm_eval


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        lm_eval.main()
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: evaluation: required packages are not installed: lm_eval",
        "hint: pip install '.[eval]'",
    ]
