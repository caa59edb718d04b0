"""Reports as text, Markdown and JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from support.validations import small_validation

from prosparse_export.validation import QuantizationCost
from prosparse_export.validation.record_validation import summary
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


def test_costs_of_quantization_are_a_table() -> None:
    layers = [QuantizationCost(f"model.layers.{i}.mlp", 0.5 / (i + 1), "i4") for i in range(12)]
    r = small_validation(quantization_costs=(QuantizationCost("", 0.75, "i4/i8"), *layers), explained=False)
    text, markdown = as_text(r).splitlines(), as_markdown(r).splitlines()
    for lines in (text, markdown):
        assert "Quantization: i4/i8 costs 7.50e-01 nats per token" in lines
        assert "and 2 parts that cost less" in lines
    assert ["model.layers.1.mlp", "i4", "2.50e-01"] in [line.split() for line in text]
    assert "| model.layers.1.mlp | i4 | 2.50e-01 |" in markdown
    assert not any("layers.10" in line for line in (*text, *markdown))
    assert "model.layers.1.mlp i4: 2.50e-01" in as_junit(r)
    assert [(cost.module, cost.kl) for cost in summary(r).quantization_costs[:2]] == [
        ("", 0.75),
        ("model.layers.0.mlp", 0.5),
    ]
