"""Which FFNs are found, with which projections, and why some cannot be rewritten."""

from __future__ import annotations

import pytest
from support.graphs import D_FF, D_MODEL, ffn_graph, graph_of
from support.onnx_text import weights

from graph_passes.patterns.ffn_pattern import FfnMatch, FfnOutcome, find_ffns

GATED = "a = Relu (z)\nh = Mul (a, u)"
MLP = "model.layers.3.mlp"


def only(nodes: str, *, gated: bool = True, **options: object) -> FfnMatch:
    (match,) = find_ffns(ffn_graph(nodes, gated=gated, **options).graph)  # type: ignore[arg-type]
    return match


def test_a_gated_ffn() -> None:
    match = only(GATED, scope=MLP)
    assert (match.layer, match.module, match.activation, match.threshold, match.reason) == (3, MLP, "relu", 0.0, "")
    assert [linear and linear.module for linear in (match.gate, match.up, match.down)] == [
        f"{MLP}.gate_proj",
        f"{MLP}.up_proj",
        f"{MLP}.down_proj",
    ]
    assert {node.op_type for node in match.interior} == {"Relu", "Mul"}
    assert match.node == "y"


def test_an_ungated_ffn() -> None:
    match = only("c = LessOrEqual (z, t)\nh = Where (c, zero, z)", gated=False)
    assert (match.layer, match.module, match.activation, match.threshold, match.reason) == (0, "", "fatrelu", 0.25, "")
    assert match.gate is None
    assert match.up is not None
    assert match.down is not None
    assert (match.up.output.name, match.up.d_out, match.down.d_out) == ("z", D_FF, D_MODEL)


@pytest.mark.parametrize(
    ("nodes", "gate", "up"),
    [
        ("a = Relu (z)\nh = Mul (a, u)", "z", "u"),
        ("a = Relu (z)\nh = Mul (u, a)", "z", "u"),
        ("a = Relu (u)\nh = Mul (a, z)", "u", "z"),
        ("a = Relu (u)\nh = Mul (z, a)", "u", "z"),
    ],
)
def test_the_gate_is_the_projection_with_the_relu(nodes: str, gate: str, up: str) -> None:
    match = only(nodes)
    assert match.gate is not None
    assert match.up is not None
    assert (match.gate.output.name, match.up.output.name, match.reason) == (gate, up, "")


def test_drelu_needs_two_projections() -> None:
    assert only("a = Relu (z)\nv = Relu (u)\nh = Mul (a, v)").activation == "drelu"
    same = only("a = Relu (z)\nv = Relu (z)\nh = Mul (a, v)", gated=False)
    assert same.activation == ""
    assert same.reason


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        ("g = Sigmoid (z)\ns = Mul (z, g)\nh = Mul (s, u)", ("y",), "gate is Silu, not a ReLU"),
        (GATED, ("y", "a"), "'a' is also used outside the FFN"),
        (GATED, ("y", "z"), "'z' is also used outside the FFN"),
        (f"{GATED}\nq = Sigmoid (u)", ("y", "q"), "'u' is also used outside the FFN"),
        (f"{GATED}\nq = Sigmoid (h)", ("y", "q"), "'h' is also used outside the FFN"),
    ],
)
def test_reasons(nodes: str, outputs: tuple[str, ...], reason: str) -> None:
    assert only(nodes, outputs=outputs).reason == reason


def test_widths_must_agree() -> None:
    arrays = weights()
    narrow = {"w_up": arrays["w_up"], "w_down": arrays["w_down"][:, :16]}
    nodes = "z = MatMul (x, w_up)\nh = Relu (z)\ny = MatMul (h, w_down)"
    (match,) = find_ffns(graph_of(nodes, "float[n, 32] x", "float[n, 16] y", **narrow).graph)
    assert match.reason == "input width 32 differs from output width 16; both must be d_model"


def test_chained_ffns_share_no_projection() -> None:
    arrays = weights()
    nodes = "z = MatMul (x, up)\nh = Relu (z)\nm = MatMul (h, square)\nk = Relu (m)\ny = MatMul (k, square)"
    square = arrays["w_up"][:, :32]
    matches = find_ffns(graph_of(nodes, "float[n, 32] x", "float[n, 32] y", up=square, square=square).graph)
    assert [match.reason for match in matches] == ["", "its up_proj is the down_proj of another FFN, m"]
    assert [match.layer for match in matches] == [0, 1]


def test_only_elementwise_nodes_may_lie_between() -> None:
    assert find_ffns(ffn_graph("h = Softmax (z)", gated=False).graph) == []
    assert only("r = Relu (z)\nh = Identity (r)", gated=False).reason == ""


def test_ffns_in_bodies_are_listed() -> None:
    nodes = """y = If (c) <
  then_branch = one () => (float[n, 32] p) { z = MatMul (x, w_up)  h = Relu (z)  p = MatMul (h, w_down) },
  else_branch = two () => (float[n, 32] q) { q = Identity (x) }
>"""
    arrays = weights()
    model = graph_of(nodes, "float[n, 32] x, bool c", "float[n, 32] y", w_up=arrays["w_up"], w_down=arrays["w_down"])
    (match,) = find_ffns(model.graph)
    assert match.reason == "it is in the body of If 'y'; expected the main graph"


def test_outcomes_are_one_line() -> None:
    done = FfnOutcome(2, "", "SparseGatedFFN", "fatrelu", 0.25, 8, 24, "")
    assert done.rewritten
    assert str(done) == "layer 2: SparseGatedFFN (fatrelu, threshold 0.25, d_model 8, d_ff 24)"
    dense = FfnOutcome(1, "", "", "", 0.0, 8, 24, "gate is Silu, not a ReLU")
    assert not dense.rewritten
    assert str(dense) == "layer 1: gate is Silu, not a ReLU"
