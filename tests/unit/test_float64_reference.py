"""The float64 reference: values, error bounds, and independence from the code that it checks."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest

from prosparse_export.validation import float64_reference
from prosparse_export.validation.float64_reference import exact_ffn, gamma

IMPORTS = {
    "graph_passes.are_output_powers",
    "graph_passes.dequantize",
    "graph_passes.is_quantized",
    "graph_passes.output_powers",
    "graph_passes.formats.Format",
    "graph_passes.formats.QUANT_GROUP",
    "graph_passes.formats.format_of",
    "prosparse_export.analysis.ffn_nodes.FfnNode",
    "prosparse_export.export.rounded_reference.stored_arrays",
    "prosparse_models.FileWeights",
}


def test_writes_its_own_rule_for_active_neurons() -> None:
    """It imports how weights are stored and read, but nothing that decides which neurons are active."""
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(inspect.getsource(float64_reference)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("graph_passes", "prosparse"))
        for alias in node.names
    }
    assert imported == IMPORTS


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", [0.0, 0.0, 1.0]),
        ("fatrelu", [0.0, 0.0, 1.0]),
        ("relu2", [0.0, 0.0, 1.0]),
        ("drelu", [0.0, 0.0, 1.0]),
        ("silu", [0.0, 0.0, 1 / (1 + np.exp(-1.0))]),
    ],
)
def test_activations(activation: str, expected: list[float]) -> None:
    z = np.array([-1e-3, 0.0, 1.0])
    identity, zeros = np.eye(3), np.zeros(3)
    weights = {"gate": np.diag(z), "gate_bias": zeros, "up": identity, "up_bias": zeros, "down": identity}
    threshold = 0.5 if activation == "fatrelu" else 0.01 if activation == "silu" else 0.0
    y, bound = exact_ffn(np.ones((1, 3)), {**weights, "down_bias": zeros}, activation, threshold, rounds=False)
    np.testing.assert_allclose(y[0], expected, rtol=1e-15)
    assert (bound < 1e-4).all()


def test_a_neuron_at_its_threshold_is_in_the_bound() -> None:
    one, zero = np.ones((1, 1)), np.zeros(1)
    weights = {"up": one, "up_bias": zero, "down": one, "down_bias": zero}
    y, bound = exact_ffn(0.5 * one, weights, "fatrelu", 0.5, rounds=False)
    assert y[0, 0] == 0.0  # z > t is false at the threshold
    assert bound[0, 0] >= 0.5
    y, bound = exact_ffn(0.6 * one, weights, "fatrelu", 0.5, rounds=False)
    assert y[0, 0] == 0.6
    assert bound[0, 0] < 1e-5


def test_gamma() -> None:
    assert gamma(1000) == pytest.approx(1000 * 2.0**-24, rel=1e-4)
    assert gamma(1000) > 1000 * 2.0**-24
