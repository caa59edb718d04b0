"""Layer numbers of modules."""

from __future__ import annotations

from prosparse_export.validation.operator_checks import layer_of


def test_layer_of_a_module() -> None:
    assert layer_of("model.layers.12.mlp") == 12
    assert layer_of("transformer.h.3") == 3
    assert layer_of("lm_head") is None
