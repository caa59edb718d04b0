"""Reports as text, Markdown and JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from support.validations import small_validation

from prosparse_export.validation.render import as_junit, as_markdown, as_text


def test_reports_name_failed_checks() -> None:
    r = small_validation()
    assert "FAILED top-1 agreement: measured 90%; allowed at least 99%" in as_text(r).splitlines()
    assert "| top-1 agreement | 90% | at least 99% | **FAIL** |" in as_markdown(r).splitlines()
    suite = ET.fromstring(as_junit(r))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert "Greedy tokens before the first difference from PyTorch, by prompt: 3, 4 of 4" in as_markdown(r).splitlines()
    failures = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    assert failures["a <b> check"] is None
    assert failures["top-1 agreement"].get("message") == "measured 90%; allowed at least 99%"  # type: ignore[union-attr]
    assert not r.passed
