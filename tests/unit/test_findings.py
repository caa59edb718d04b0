"""Findings in words, and findings of wrong weights."""

from __future__ import annotations

from prosparse_export.validation import Finding, OperatorCheck, StoredWeights
from prosparse_export.validation.findings import weight_findings


def test_a_finding_names_layer_operator_module_and_token() -> None:
    finding = Finding("with library, prefill", 2, "LinearI4", "model.layers.2.self_attn.o_proj", 7, 0.5, 0.25)
    where = "layer 2: LinearI4 (model.layers.2.self_attn.o_proj), token 7, with library, prefill"
    assert str(finding) == f"{where}: off by 0.5, bound 0.25"
    assert str(Finding("run", None, "Add", "", 0, 1, 0)).startswith("outside the layers: Add, token 0, run:")


def test_wrong_weights_are_findings() -> None:
    operator = OperatorCheck(2, "model.layers.2.mlp", "SparseGatedFFNI4", 96, 0.0, 0.0, ("w_scale",))
    weights = StoredWeights(5, 1.0, ("model.layers.1.input_layernorm.weight", "model.norm.weight"))
    found = weight_findings([operator], weights)
    assert [(f.run, f.layer, f.op) for f in found] == [
        ("w_scale", 2, "SparseGatedFFNI4"),
        ("model.layers.1.input_layernorm.weight", 1, "initializer"),
        ("model.norm.weight", None, "initializer"),
    ]
    assert str(found[0]) == "layer 2: SparseGatedFFNI4 (model.layers.2.mlp): w_scale differs from the checkpoint"
    assert weight_findings([], None) == []
