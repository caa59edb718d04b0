"""Which nodes are recognized as a ReLU-like activation, with which threshold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of

from graph_passes.patterns.activation_pattern import describe_activation, match_activation, without_identities

BELOW = float(np.nextafter(np.float32(0.25), np.float32(0)))  # the largest float below t
SILU = "g = Sigmoid (z)\ns = Mul (z, g)\nn = Abs (s)\n"
MATCHES = {
    "y = Relu (z)": ("relu", 0.0),
    "y = Max (zero, z)": ("relu", 0.0),
    "y = Clip (z, zero)": ("relu", 0.0),
    "y = Clip (z, zero, big)": ("relu", 0.0),
    "y = ThresholdedRelu <alpha = 0.5> (z)": ("fatrelu", 0.5),
    "y = ThresholdedRelu <alpha = 0.0> (z)": ("relu", 0.0),
    "r = Relu (z)\ny = Pow (r, two)": ("relu2", 0.0),
    "r = ThresholdedRelu <alpha = 0.5> (z)\ny = Mul (r, r)": ("relu2", 0.5),
    "c = LessOrEqual (z, t)\ny = Where (c, zero, z)": ("fatrelu", 0.25),
    "c = Less (z, t)\ny = Where (c, zero, z)": ("fatrelu", BELOW),
    "c = Less (t, z)\ny = Where (c, z, zero)": ("fatrelu", 0.25),
    "c = LessOrEqual (t, z)\ny = Where (c, z, zero)": ("fatrelu", BELOW),
    "c = GreaterOrEqual (z, zero)\ny = Where (c, z, zero)": ("relu", 0.0),
    "c = Greater (z, t)\nd = Not (c)\ny = Where (d, zero, z)": ("fatrelu", 0.25),
    "c = Greater (z, t)\nm = Cast <to = 1> (c)\ny = Mul (m, z)": ("fatrelu", 0.25),
    f"{SILU}c = LessOrEqual (n, t)\ny = Where (c, zero, s)": ("silu", 0.25),
    "i = Identity (z)\nr = Relu (i)\nd = Dropout (r)\ny = Identity (d)": ("relu", 0.0),
}
OTHERS = [
    "y = Sigmoid (z)",
    "y = LeakyRelu (z)",
    "y = Max (z, t)",
    "y = Clip (z, zero, two)",
    "y = Clip (z, t)",
    "y = ThresholdedRelu <alpha = -1.0> (z)",
    "r = Relu (z)\ny = Pow (r, t)",
    "r = Relu (z)\nq = Mul (r, r)\ny = Mul (q, q)",
    "c = LessOrEqual (z, minus)\ny = Where (c, zero, z)",
    "c = LessOrEqual (z, t)\ny = Where (c, t, z)",
    "c = LessOrEqual (z, t)\ny = Where (c, z, zero)",
    "c = LessOrEqual (z, t)\nm = Cast <to = 1> (c)\ny = Mul (m, z)",
    "n = Abs (z)\nc = LessOrEqual (n, t)\ny = Where (c, zero, z)",
]
CONSTANTS = {"zero": 0.0, "two": 2.0, "t": 0.25, "minus": -0.25, "big": np.finfo(np.float32).max}


def output(nodes: str) -> tuple[ir.Model, ir.Value]:
    model = graph_of(nodes, "float[n, 4] z", "float[n, 4] y", **{k: np.float32(v) for k, v in CONSTANTS.items()})
    return model, model.graph.outputs[0]


@pytest.mark.parametrize("nodes", MATCHES)
def test_matches(nodes: str) -> None:
    model, y = output(nodes)
    found = match_activation(y)
    assert found is not None
    assert (found.kind, found.threshold) == MATCHES[nodes]
    assert without_identities(found.z) is model.graph.inputs[0]


@pytest.mark.parametrize("nodes", OTHERS)
def test_does_not_match(nodes: str) -> None:
    assert match_activation(output(nodes)[1]) is None


def test_a_zero_that_broadcasts_the_result_does_not_match() -> None:
    constants = {"zero": np.float32(0), "s": np.asarray([3, 1, 1])}
    nodes = "o = Expand (zero, s)\ny = Max (z, o)"
    model = graph_of(nodes, "float[2, 4] z", "float[3, 2, 4] y", **constants)
    assert match_activation(model.graph.outputs[0]) is None


def test_dropout_in_training_mode_stays() -> None:
    model = graph_of("y = Dropout (z, r, m)", "float[n, 4] z", "float[n, 4] y", r=np.float32(0.5), m=np.bool_(True))
    assert without_identities(model.graph.outputs[0]) is model.graph.outputs[0]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("g = Sigmoid (z)\ny = Mul (z, g)", "gate is Silu, not a ReLU"),
        ("g = Tanh (z)\ny = Mul (z, g)", "gate is Gelu (tanh), not a ReLU"),
        ("y = LeakyRelu (z)", "gate is LeakyRelu, not a ReLU"),
        ("y = Mul (z, z)", "gate is linear, not a ReLU"),
        ("r = Relu (z)\ny = Mul (r, two)", "unsupported nodes next to the ReLU: Mul 'y'"),
    ],
)
def test_reasons(nodes: str, reason: str) -> None:
    interior = [node for node in output(nodes)[0].graph if node.op_type != "Constant"]
    assert describe_activation(interior, gated=True) == reason
    assert describe_activation(interior, gated=False) == reason.replace("gate", "activation")
