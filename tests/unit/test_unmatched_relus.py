"""Why a ReLU between two MatMuls is not part of an FFN that the pattern recognizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graph_passes.patterns import matmul_search, unmatched_relus
from graph_passes.patterns.linear import find_linears
from graph_passes.patterns.matmul_search import MatMulSearch

W = np.eye(4, dtype=np.float32)
CONSTANTS = {"w": W, "one": np.float32(1), "bias": np.ones((4, 4), np.float32), "axes": np.asarray([1])}
CONSTANTS |= {"zero": np.uint8(0), "ints": np.eye(4, dtype=np.uint8), "split": np.asarray([4, 4])}
CONSTANTS |= {"wide": np.ones((4, 8), np.float32), "rows": np.asarray([0, 1, 2, 3])}
UP, DOWN = "z = MatMul (x, w)\n", "\ny = MatMul (h, w)"
REASONS = {
    f"z = Gemm <alpha = 2.0> (x, w)\nh = Relu (z){DOWN}": "alpha and beta of Gemm 'z' must be 1",
    f"z = Gemm <transA = 1> (x, w)\nh = Relu (z){DOWN}": "transA of Gemm 'z' must be 0",
    f"{UP}r = Relu (z)\nh = Transpose (r)\ny = MatMul (w, h)": "the weight of MatMul 'y' must be its second input",
    f"z = MatMul (x, v)\nh = Relu (z){DOWN}": (
        "the weight of MatMul 'z' is computed at run time; expected an initializer"
    ),
    f"z = Gemm (x, w, bias)\nh = Relu (z){DOWN}": "the bias of Gemm 'z' must be a constant of length d_out",
    f'z = Einsum <equation = "ab,bc->ac"> (x, w)\nh = Relu (z){DOWN}': (
        "Einsum 'z' is not supported; expected MatMul, Gemm or MatMulNBits"
    ),
    f"z = MatMulInteger (ints, ints)\nf = Cast <to = 1> (z)\nh = Relu (f){DOWN}": (
        "its activations are quantized (MatMulInteger 'z'); expected a float MatMul"
    ),
    f"{UP}r = Relu (z)\nh = LayerNormalization (r, one){DOWN}": (
        "a norm between the activation and down_proj needs every neuron"
    ),
    f"p = MatMul (x, wide)\nz, u = Split <axis = 1> (p, split)\nr = Relu (z)\nh = Mul (r, u){DOWN}": (
        "gate_proj and up_proj are packed into one MatMul"
    ),
    f"{UP}g = Gather (z, rows)\nh = Relu (g){DOWN}": ("mixture of experts: weights are selected per token at run time"),
    f"{UP}m = ReduceMean (z, axes)\nd = Sub (z, m)\nh = Relu (d){DOWN}": (
        "its threshold is computed per token from all neurons (Gaussian top-k)"
    ),
    f"{UP}r = Relu (z)\nq = QuantizeLinear (r, one, zero)\nh = DequantizeLinear (q, one, zero){DOWN}": (
        "its activations are quantized (DequantizeLinear)"
    ),
    f"{UP}q = QuantizeLinear (z, one, zero)\nh = DequantizeLinear (q, one, zero){DOWN}": (
        "its activations are quantized: the ReLU is folded into the zero point of QuantizeLinear 'q'"
    ),
    f'z = com.microsoft.FusedMatMul <activation = "Relu"> (x, w)\nh = Identity (z){DOWN}': (
        "the ReLU is fused into FusedMatMul 'z'; export without onnxruntime's graph optimizations"
    ),
    f"{UP}s = Sin (z)\nh = Relu (s){DOWN}": "its structure is not supported (Sin)",
}
SILENT = [
    "h = Relu (x)" + DOWN,
    f"{UP}y = Relu (z)",
    f"{UP}h = Sigmoid (z){DOWN}",
    f"{UP}s = Softmax (z)\nh = Relu (s){DOWN}",
]


def graph_of(nodes: str) -> ir.Graph:
    head = '<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{head} g (float[4, 4] x, float[4, 4] v) => (float[4, 4] y) {{\n{nodes}\n}}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items())
    return ir.from_proto(proto).graph


def reasons(nodes: str) -> list[str]:
    graph = graph_of(nodes)
    found = unmatched_relus.unmatched_relus(graph, find_linears(graph), (), MatMulSearch(graph))
    return [reason for _, reason in found]


@pytest.mark.parametrize("nodes", REASONS)
def test_reasons(nodes: str) -> None:
    assert reasons(nodes) == [REASONS[nodes]]


@pytest.mark.parametrize("nodes", SILENT)
def test_other_nodes(nodes: str) -> None:
    assert reasons(nodes) == []


def test_matched_nodes_are_left_out() -> None:
    graph = graph_of(f"{UP}h = Relu (z){DOWN}")
    matched = [id(node) for node in graph if node.op_type == "Relu"]
    assert not list(unmatched_relus.unmatched_relus(graph, find_linears(graph), matched, MatMulSearch(graph)))
    assert len(list(unmatched_relus.unmatched_relus(graph, find_linears(graph), (), MatMulSearch(graph)))) == 1


def test_an_incomplete_search_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_search, "MAX_VALUES", 3)
    monkeypatch.setattr(unmatched_relus, "MAX_VALUES", 3)
    steps = "\n".join(f"s{i + 1} = Sin (s{i})" for i in range(5))
    nodes = f"{UP}s0 = Relu (z)\n{steps}\nh = Identity (s5){DOWN}"
    assert reasons(nodes) == ["no MatMul found within 3 values of the ReLU; expected one before and one after"]
