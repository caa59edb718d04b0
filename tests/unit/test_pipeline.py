"""What ``optimize_pipeline`` makes of the graphs of other exporters."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from support.onnx_text import D_FF, D_MODEL, GATED, UNGATED, model, named, weights
from support.relu_shapes import count_relu_shapes
from support.third_party_graphs import GRAPHS

from graph_passes import FfnFormat, FfnOutcome, optimize_pipeline

DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


def optimized(
    proto: ModelProto, weights: FfnFormat | None = None, *, decomposed: bool = False
) -> tuple[ModelProto, list[FfnOutcome]]:
    outcomes: list[FfnOutcome] = []
    result = optimize_pipeline(outcomes, weights=weights, decomposed=decomposed)(ir.from_proto(proto))
    return ir.to_proto(result.model), outcomes


def run(proto: ModelProto) -> NDArray[np.generic]:
    """The output of stock onnxruntime, which inlines function bodies."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 3 + i for i, dim in enumerate(value.shape)]
        feeds[value.name] = np.asarray(rng.standard_normal(shape)).astype(DTYPES[value.type])
    result: NDArray[np.generic] = session.run(None, feeds)[0]
    return result


@pytest.mark.parametrize("name", GRAPHS)
def test_third_party_graphs(name: str) -> None:
    build, rewritten, reasons = GRAPHS[name]
    source = named(build())
    proto, outcomes = optimized(source)
    assert sum(outcome.rewritten for outcome in outcomes) == rewritten
    assert [node.domain for node in proto.graph.node].count("com.prosparse") == rewritten
    unchanged = [outcome for outcome in outcomes if not outcome.rewritten]
    assert len(unchanged) == len(reasons)
    for outcome, reason in zip(unchanged, reasons, strict=True):
        assert reason in outcome.reason
        assert outcome.node.startswith("/mlp/")
    # No ReLU is missed: an independent count, which does not include FFNs without a ReLU, agrees.
    assert count_relu_shapes(source) == rewritten + sum("not a ReLU" not in reason for reason in reasons)
    if rewritten:
        expected, actual = run(source), run(proto)
        assert actual.dtype == expected.dtype
        # Sums of d_model, then d_ff terms, in another order; float16 also rounds h and y.
        half = expected.dtype == np.float16
        bound = (2 * (D_MODEL + D_FF) * 2.0**-24 + 4 * half * 2.0**-11) * max(1.0, float(np.abs(expected).max()))
        assert np.abs(actual.astype(np.float64) - expected).max() <= bound


def test_zeros_that_broadcast_the_activations_are_not_a_relu() -> None:
    nodes = "z = MatMul (x, w_up)\no = ConstantOfShape (larger)\nh = Max (z, o)\ny = MatMul (h, w_down)"
    proto = model(nodes, {**weights(), "larger": np.array([2, 1, 1, D_FF])}, y=f"float[two, b, s, {D_MODEL}] y")
    assert [outcome.reason for outcome in optimized(proto)[1]] == ["activation is Max, not a ReLU"]


def test_a_second_run_changes_nothing() -> None:
    once, _ = optimized(model(GATED))
    twice, outcomes = optimized(once)
    assert outcomes == []
    assert [node.op_type for node in once.graph.node] == [node.op_type for node in twice.graph.node]
    assert [function.name for function in twice.functions] == ["SparseGatedFFNF32"]


def test_shared_weights_are_stored_once() -> None:
    proto, outcomes = optimized(GRAPHS["weights shared by two FFNs"][0]())
    assert [outcome.op for outcome in outcomes] == ["SparseFFNF32"] * 2
    matrices = [tensor.name for tensor in proto.graph.initializer if len(tensor.dims) == 2]
    assert len(matrices) == 2
    assert all(set(matrices) <= set(node.input) for node in proto.graph.node)


@pytest.mark.parametrize("nodes", [GATED, UNGATED.format("ThresholdedRelu <alpha = 0.1> (z)")])
@pytest.mark.parametrize("stored", ["f32", "f16", "i8", "i4", "nl4i8"])
def test_decomposed_graphs_are_standard_onnx(nodes: str, stored: FfnFormat) -> None:
    source = model(nodes, opset=20)
    proto, _ = optimized(source, stored, decomposed=True)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [imported.domain for imported in proto.opset_import] == [""]
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_array_equal(run(proto), run(optimized(source, stored)[0]))
