"""Which FFNs become sparse operators, with the same outputs, and why others do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import D_FF, D_MODEL, evaluate, ffn_graph

from graph_passes import FfnOutcome, FuseSparseFfnPass
from graph_passes.patterns import matmul_search

SILU = "g = Sigmoid (z)\ns = Mul (g, z)\nn = Abs (s)"
GATED = {
    "relu": ("a = Relu (z)\nh = Mul (a, u)", "relu", 0.0),
    "relu, other order": ("a = Relu (z)\nh = Mul (u, a)", "relu", 0.0),
    "relu as Max": ("a = Max (z, zero)\nh = Mul (a, u)", "relu", 0.0),
    "relu as Clip": ("a = Clip (z, zero)\nh = Mul (a, u)", "relu", 0.0),
    "relu2 by Pow": ("r = Relu (z)\na = Pow (r, two)\nh = Mul (a, u)", "relu2", 0.0),
    "relu2 by Mul": ("r = Relu (z)\na = Mul (r, r)\nh = Mul (a, u)", "relu2", 0.0),
    "fatrelu, z <= t": ("c = LessOrEqual (z, t)\na = Where (c, zero, z)\nh = Mul (a, u)", "fatrelu", 0.25),
    "fatrelu as torch exports it": (
        "c = LessOrEqual (z, t)\ns = Shape (z)\no = Expand (zero, s)\na = Where (c, o, z)\nh = Mul (a, u)",
        "fatrelu",
        0.25,
    ),
    "fatrelu, t >= z": ("c = GreaterOrEqual (t, z)\na = Where (c, zero, z)\nh = Mul (a, u)", "fatrelu", 0.25),
    "fatrelu, z > t": ("c = Greater (z, t)\na = Where (c, z, zero)\nh = Mul (a, u)", "fatrelu", 0.25),
    "fatrelu, not z > t": ("g = Greater (z, t)\nc = Not (g)\na = Where (c, zero, z)\nh = Mul (a, u)", "fatrelu", 0.25),
    "fatrelu, keeps the boundary": (
        "c = GreaterOrEqual (z, t)\na = Where (c, z, zero)\nh = Mul (a, u)",
        "fatrelu",
        float(np.nextafter(np.float32(0.25), np.float32(0))),
    ),
    "fatrelu by a mask": ("c = Greater (z, t)\nm = Cast <to = 1> (c)\na = Mul (z, m)\nh = Mul (a, u)", "fatrelu", 0.25),
    "drelu": ("a = Relu (z)\nv = Relu (u)\nh = Mul (a, v)", "drelu", 0.0),
    "silu by magnitude": (f"{SILU}\nc = LessOrEqual (n, t)\na = Where (c, zero, s)\nh = Mul (a, u)", "silu", 0.25),
    "silu by a mask": (
        f"{SILU}\nc = Greater (n, t)\nm = Cast <to = 1> (c)\na = Mul (m, s)\nh = Mul (u, a)",
        "silu",
        0.25,
    ),
}
UNGATED = {
    "relu": ("h = Relu (z)", "relu", 0.0),
    "relu2": ("r = Relu (z)\nh = Mul (r, r)", "relu2", 0.0),
    "fatrelu": ("c = LessOrEqual (z, t)\nh = Where (c, zero, z)", "fatrelu", 0.25),
}
CASES = [pytest.param(*case, True, id=f"gated {name}") for name, case in GATED.items()]
CASES += [pytest.param(*case, False, id=f"ungated {name}") for name, case in UNGATED.items()]


@pytest.mark.parametrize("form", ["matmul", "matmul and bias", "gemm", "gemm and bias"])
@pytest.mark.parametrize(("nodes", "activation", "threshold", "gated"), CASES)
def test_rewrites(nodes: str, activation: str, threshold: float, gated: bool, form: str) -> None:
    model = ffn_graph(nodes, gated=gated, bias="bias" in form, gemm="gemm" in form)
    x = np.random.default_rng(1).standard_normal((5, D_MODEL) if "gemm" in form else (2, 3, D_MODEL)).astype(np.float32)
    expected = evaluate(model, x=x)[0]
    weights = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}
    outcomes: list[FfnOutcome] = []
    result = FuseSparseFfnPass(outcomes)(model)
    assert result.modified
    op = "SparseGatedFFNF32" if gated else "SparseFFNF32"
    assert [(o.op, o.activation, o.reason, o.d_model, o.d_ff) for o in outcomes] == [
        (op, activation, "", D_MODEL, D_FF)
    ]
    assert outcomes[0].threshold == pytest.approx(threshold, abs=0)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == [op]
    actual = evaluate(model, x=x)[0]
    bound = forward_error(x, weights, gated, bias="bias" in form, power=2 if activation == "relu2" else 1)
    wrong = ~(np.abs(actual - expected) <= bound)  # a NaN is wrong
    assert not wrong.any(), f"off by {np.abs(actual - expected).max()}"
    assert bound.max() < 1e-3 * np.abs(expected).max()


def forward_error(x: np.ndarray, weights: dict[str, np.ndarray], gated: bool, *, bias: bool, power: int) -> np.ndarray:
    """How far two float32 evaluations of an FFN may differ: the number of roundings times the sum of magnitudes."""
    w = {name: np.abs(value.astype(np.float64)) for name, value in weights.items()}
    add = {name: w[f"b_{name}"] if bias else 0.0 for name in ("gate", "up", "down")}
    z = np.abs(x.astype(np.float64)) @ w["w_gate" if gated else "w_up"] + add["gate" if gated else "up"]
    h = z**power
    if gated:
        h = h * (np.abs(x.astype(np.float64)) @ w["w_up"] + add["up"])
    roundings = (power + gated) * (D_MODEL + 2) + 3 + D_FF + 2
    return 2 * roundings * 2.0**-24 * (h @ w["w_down"] + add["down"])


def test_uses_down_proj_in_place_and_transposes_the_others() -> None:
    model = ffn_graph("a = Relu (z)\nh = Mul (a, u)", scope="model.layers.7.mlp")
    old = {n: model.graph.initializers[n].const_value.numpy() for n in ("w_gate", "w_up", "w_down")}
    outcomes: list[FfnOutcome] = []
    FuseSparseFfnPass(outcomes)(model)
    node = next(n for n in model.graph if n.domain == "com.prosparse")
    _, w_gate, b_gate, w_up, b_up, w_down, b_down = node.inputs
    assert (w_gate.name, w_up.name) == ("model.layers.7.mlp.gate_proj.weight", "model.layers.7.mlp.up_proj.weight")
    assert w_down is model.graph.initializers["w_down"]
    assert b_gate is b_up
    np.testing.assert_array_equal(w_gate.const_value.numpy(), old["w_gate"].T)
    np.testing.assert_array_equal(w_up.const_value.numpy(), old["w_up"].T)
    np.testing.assert_array_equal(b_down.const_value.numpy(), np.zeros(D_MODEL, np.float32))
    assert (outcomes[0].layer, outcomes[0].module) == (7, "model.layers.7.mlp")
    assert str(outcomes[0]) == f"layer 7: SparseGatedFFNF32 (relu, d_model {D_MODEL}, d_ff {D_FF})"
    assert node.outputs[0].shape == ir.Shape(["b", "s", D_MODEL])


NOT_A_RELU = {
    "silu": ("s = Sigmoid (z)\na = Mul (z, s)\nh = Mul (a, u)", "gate is Silu, not a ReLU"),
    "gelu": ("a = Gelu (z)\nh = Mul (a, u)", "gate is Gelu, not a ReLU"),
    "leaky": ("a = LeakyRelu (z)\nh = Mul (a, u)", "gate is LeakyRelu, not a ReLU"),
    "two-sided": ("a = Abs (z)\nh = Mul (a, u)", "gate is Abs, not a ReLU"),
    "clipped above": ("a = Clip (z, zero, two)\nh = Mul (a, u)", "gate is Clip, not a ReLU"),
    "cubed": ("r = Relu (z)\nq = Pow (r, two)\na = Pow (q, two)\nh = Mul (a, u)", "gate is Pow and Relu, not a ReLU"),
    "shifted": ("r = Relu (z)\na = Sub (r, t)\nh = Mul (a, u)", "gate is Relu and Sub, not a ReLU"),
    "no activation": ("h = Mul (z, u)", "gate is linear, not a ReLU"),
}


@pytest.mark.parametrize(("nodes", "reason"), NOT_A_RELU.values(), ids=NOT_A_RELU)
def test_leaves_other_activations_alone(nodes: str, reason: str) -> None:
    model = ffn_graph(nodes, scope="model.layers.3.mlp")
    before = [node.op_type for node in model.graph]
    outcomes: list[FfnOutcome] = []
    assert not FuseSparseFfnPass(outcomes)(model).modified
    assert [str(o) for o in outcomes] == [f"layer 3: {reason}"]
    assert [node.op_type for node in model.graph] == before
    assert not model.functions


def test_leaves_an_ffn_alone_whose_hidden_value_is_read_elsewhere() -> None:
    model = ffn_graph("a = Relu (z)\nh = Mul (a, u)", outputs=("y", "h"))
    outcomes: list[FfnOutcome] = []
    assert not FuseSparseFfnPass(outcomes)(model).modified
    assert outcomes[0].reason == "'h' is also used outside the FFN"


def test_a_search_that_ends_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = "\n".join(f"n{i + 1} = Softsign (n{i})" for i in range(20)).replace("(n0)", "(z)")
    model = ffn_graph(f"{nodes}\nh = Relu (n20)", gated=False)
    outcomes: list[FfnOutcome] = []
    FuseSparseFfnPass(outcomes)(model)
    assert [o.reason for o in outcomes] == ["its structure is not supported (Softsign)"]
    monkeypatch.setattr(matmul_search, "MAX_VALUES", 10)
    outcomes.clear()
    assert not FuseSparseFfnPass(outcomes)(model).modified
    assert [o.reason[:22] for o in outcomes] == ["no MatMul found within"]


def test_a_computed_weight_is_no_linear_layer() -> None:
    model = ffn_graph("w = Mul (x, x)\nh = MatMul (z, w)", gated=False)
    outcomes: list[FfnOutcome] = []
    assert not FuseSparseFfnPass(outcomes)(model).modified
    assert outcomes == []


def test_body_travels_once_per_operator() -> None:
    model = ffn_graph("h = Relu (z)", gated=False)
    FuseSparseFfnPass()(model)
    assert [f.name for f in model.functions.values()] == ["SparseFFNF32"]
    assert model.opset_imports["com.prosparse"] == 1
