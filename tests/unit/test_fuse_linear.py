"""Which matrices outside FFNs are stored in our formats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate, graph_of, ops, set_module

from graph_passes import FORMATS, Format, FuseLinearPass, LinearOutcome, WeightPlan
from graph_passes.weights.packed_names import PART_WIDTHS
from graph_passes.weights.quantization import rounded, scales_of

D_IN, D_OUT = 32, 64
RNG = np.random.default_rng(0)
W = RNG.standard_normal((D_IN, D_OUT)).astype(np.float32)
B = RNG.standard_normal(D_OUT).astype(np.float32)
X = RNG.standard_normal((3, D_IN)).astype(np.float32)
INPUT, OUTPUT = f"float[n, {D_IN}] x", f"float[n, {D_OUT}] y"
LAYERS = {
    "MatMul": "y = MatMul (x, w)",
    "MatMul and bias": "z = MatMul (x, w)\ny = Add (b, z)",
    "Gemm": "y = Gemm (x, w, b)",
    "Gemm, transposed": "t = Transpose (w)\ny = Gemm <transB = 1> (x, t, b)",
}


@pytest.mark.parametrize("weights", [weights for weights in FORMATS if weights != "f32"])
@pytest.mark.parametrize("nodes", LAYERS.values(), ids=LAYERS)
def test_replaces_linear_layers(nodes: str, weights: Format) -> None:
    model = set_module(graph_of(nodes, INPUT, OUTPUT, w=W, b=B), y="model.o_proj", z="model.o_proj")
    outcomes: list[LinearOutcome] = []
    assert FuseLinearPass(weights, outcomes)(model).modified
    ir.passes.common.RemoveUnusedNodesPass()(model)
    op = f"Linear{weights.upper()}"
    assert ops(model) == [op]
    assert outcomes == [LinearOutcome("model.o_proj", op, D_IN, D_OUT, weights)]
    assert next(node.name for node in model.graph) == "model.o_proj"
    assert f"model.o_proj.weight.{weights}" in model.graph.initializers
    expected = X.astype(np.float64) @ rounded(W.T, weights).T + (B if "b)" in nodes or "(b" in nodes else 0)
    bound = 2 * (D_IN + 2) * 2.0**-24 * (np.abs(X) @ np.abs(rounded(W.T, weights)).T + np.abs(B))
    assert (np.abs(evaluate(model, x=X)[0] - expected) <= bound).all()
    assert not FuseLinearPass(weights)(model).modified


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Transpose (x)\nz = MatMul (t, x)\ny = MatMul (x, z)",  # no constant matrix
        "y = Gemm <alpha = 0.5> (x, w, b)",
        "h = Cast <to = 10> (x)\nz = MatMul (h, half)\ny = Cast <to = 1> (z)",  # in float16
    ],
)
def test_leaves_other_matmuls_alone(nodes: str) -> None:
    model = graph_of(nodes, INPUT, "float[n, m] y", w=W, b=B, half=W.astype(np.float16))
    before = ops(model)
    outcomes: list[LinearOutcome] = []
    assert not FuseLinearPass("i8", outcomes)(model).modified
    assert ops(model) == before
    assert outcomes == []


def embedding(nodes: str = "y = Gather (w, input_ids)", width: int = D_OUT, ids: str = "input_ids") -> ir.Model:
    return graph_of(nodes, f"int64[b, s] {ids}", "float[b, s, m] y", w=W[:, :width].copy())


@pytest.mark.parametrize("weights", [weights for weights in FORMATS if weights != "f32"])
def test_stores_the_embedding(weights: Format) -> None:
    model = embedding()
    outcomes: list[LinearOutcome] = []
    assert FuseLinearPass(weights, outcomes)(model).modified
    assert [(o.op, o.d_in, o.d_out) for o in outcomes] == [("Gather", D_IN, D_OUT)]
    assert ops(model).count("Gather") == {"i8": 2, "i4": 2, "nl4": 3}.get(weights, 1)  # scales and levels too
    assert {node.domain for node in model.graph} == {""}
    ids = np.array([[0, 31, 7]])
    np.testing.assert_array_equal(evaluate(model, input_ids=ids)[0], rounded(W, weights)[ids])


def test_tied_embeddings_are_stored_once() -> None:
    model = embedding("e = Gather (w, input_ids)\nt = Transpose <perm = [1, 0]> (w)\ny = MatMul (e, t)")
    outcomes: list[LinearOutcome] = []
    FuseLinearPass("f16", outcomes)(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert ops(model) == ["Gather", "Cast", "LinearF16"]
    assert sum(len(value.shape or ()) == 2 for value in model.graph.initializers.values()) == 1


@pytest.mark.parametrize(("width", "ids"), [(40, "input_ids"), (D_OUT, "positions")])
def test_leaves_other_lookups_alone(width: int, ids: str) -> None:
    """Rows must be whole quantization groups, and be looked up by token."""
    model = embedding(f"y = Gather (w, {ids})", width, ids)
    assert not FuseLinearPass("i4")(model).modified
    assert ops(model) == ["Gather"]


def test_in_f32_it_only_names_matmuls() -> None:
    model = set_module(graph_of("y = MatMul (x, w)", INPUT, OUTPUT, w=W), y="model.o_proj")
    assert FuseLinearPass("f32")(model).modified
    assert ops(model) == ["MatMul"]
    assert next(node.name for node in model.graph) == "model.o_proj"
    assert list(model.graph.initializers) == ["model.o_proj.weight_t"]
    assert not FuseLinearPass("f32")(model).modified


@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_projection_is_cut_where_formats_differ(bias: bool) -> None:
    nodes = "z = MatMul (x, w)\ny = Add (z, b)" if bias else "y = MatMul (x, w)"
    packed = "a.q_proj+k_proj+v_proj"
    model = set_module(graph_of(nodes, INPUT, OUTPUT, w=W, b=B), y=packed, z=packed)
    next(node for node in model.graph if node.op_type == "MatMul").metadata_props[PART_WIDTHS] = "32 16 16"
    outcomes: list[LinearOutcome] = []
    importance = {"a.q_proj": RNG.uniform(0, 2, D_IN).astype(np.float32)}
    FuseLinearPass(WeightPlan("f32", "i4", {"a.v_proj": "i8"}, importance), outcomes)(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert ops(model) == ["LinearI4", "LinearI8", "Concat"]
    assert [(o.module, o.d_out, o.weights) for o in outcomes] == [("a.q_proj+k_proj", 48, "i4"), ("a.v_proj", 16, "i8")]
    scales = scales_of(W.T[:48], "i4", importance["a.q_proj"])
    assert (scales != scales_of(W.T[:48], "i4")).any()
    stored = np.concatenate([rounded(W.T[:48], "i4", scales), rounded(W.T[48:], "i8")])
    expected = X.astype(np.float64) @ stored.T + (B if bias else 0)
    bound = 2 * (D_IN + 2) * 2.0**-24 * (np.abs(X) @ np.abs(stored).T + np.abs(B))
    assert (np.abs(evaluate(model, x=X)[0] - expected) <= bound).all()


def test_formats_by_module() -> None:
    model = set_module(graph_of("y = MatMul (x, w)", INPUT, OUTPUT, w=W), y="model.lm_head")
    FuseLinearPass(WeightPlan("i4", "i4", {"model.lm_head": "f32"}))(model)
    assert ops(model) == ["MatMul"]
