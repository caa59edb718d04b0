"""Checks pass and fail as the measurements say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.validations import small_validation

from prosparse_export.validation import Determinism, Finding, Limits, OperatorCheck, Sparsity, StoredWeights
from prosparse_export.validation.checks import determinism_check, exactness_checks, layer_checks, limit_checks
from prosparse_export.validation.render import as_text

OPERATOR = OperatorCheck(2, "model.layers.2.mlp", "SparseGatedFFNF32", 96, 1e-6, 0.5, ())


def test_every_limit_can_fail_and_pass() -> None:
    q, s = small_validation().quality[0], small_validation().sparsity
    broken = Limits(0.05, 0.95, 0.995, 0.05, 0.9, {0: 0.85, 5: 0.1}, 0.99)
    checks = limit_checks(broken, q, s, (3, 4), 4)
    assert len(checks) == 8
    assert not any(c.passed for c in checks), checks
    held = Limits(0.2, 0.9, 0.99, 0.1, 0.85, {0: 0.8, 1: 0.9}, 0.875)
    assert all(c.passed for c in limit_checks(held, q, s, (3, 4), 4))


def test_layer_numbers_are_the_models() -> None:
    q = small_validation().quality[0]
    sparse = Sparsity(0.85, (0.8, 0.9), 10, (0, 7))
    broken, missing, held = limit_checks(Limits(min_sparsity_by_layer={0: 0.85, 1: 0.1, 7: 0.85}), q, sparse, (3, 4), 4)
    assert (broken.passed, missing.passed, held.passed) == (False, False, True)
    assert missing.measured == "not a sparse layer"
    assert "by layer: 0: 80.0% 7: 90.0%" in as_text(small_validation(sparsity=sparse))


@pytest.mark.parametrize("worst", [1.5, float("nan")])
def test_an_operator_beyond_its_bound_fails(worst: float) -> None:
    checks = exactness_checks((), 1e-3, [OPERATOR, replace(OPERATOR, worst=worst)], None, (), 3)
    assert [c.name for c in checks if not c.passed] == [
        "layer 2: SparseGatedFFNF32 (model.layers.2.mlp)",
        "operators against float64",
    ]
    assert checks[-1].measured.endswith("1 more have no PyTorch module to compare with")
    assert all(c.passed for c in exactness_checks((), 1e-3, [OPERATOR], None, (), 1))


def test_wrong_weights_and_missing_operators_fail() -> None:
    wrong = replace(OPERATOR, wrong_weights=("w",))
    checks = exactness_checks((), 1e-3, [wrong], StoredWeights(9, 1.0, ("norm.weight",)), ("LinearI4",), 1)
    failed = {c.name: c.measured for c in checks if not c.passed}
    assert failed["operators in the library"] == "LinearI4 missing"
    assert failed["stored weights"] == "norm.weight differ"
    assert "weights differ from the checkpoint: w" in failed["layer 2: SparseGatedFFNF32 (model.layers.2.mlp)"]


def test_layers_and_repeated_runs() -> None:
    finding = Finding("with library, prefill", 1, "Add", "", 3, 0.5, 0.1)
    place, total = layer_checks([finding, replace(finding, run="without library, prefill")], 96)
    assert (place.name, place.passed, total.measured) == ("layer 1: Add", False, "1 out of bounds")
    assert [c.passed for c in layer_checks([], 96)] == [True]
    assert determinism_check(Determinism((1, 1), 10, 0, "")).passed
    assert not determinism_check(Determinism((1, 2), 10, 1, "window 0")).passed
