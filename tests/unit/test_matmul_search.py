"""What counts as a MatMul, and which of them lie before and after a value."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.graphs import graph_of

from graph_passes.patterns import matmul_search
from graph_passes.patterns.matmul_search import MatMulSearch, bodies_of, is_convolution, is_matmul

W = np.eye(4, dtype=np.float32)
CHAIN = """a = MatMul (x, w)
b = Add (a, x)
r = Relu (b)
c = MatMul (r, w)
y = MatMul (c, w)"""


def model(nodes: str, **more: object) -> ir.Model:
    return graph_of(nodes, "float[n, 4] x", "float[n, 4] y", w=W, **more)


def value(graph: ir.Graph, name: str) -> ir.Value:
    return next(v for node in graph for v in node.outputs if v.name == name)


def found(nodes: str, name: str, *, forward: bool) -> list[str | None]:
    graph = model(nodes).graph
    matmuls, is_cut = MatMulSearch(graph).matmuls(value(graph, name), forward=forward)
    assert not is_cut
    return [node.outputs[0].name for node in matmuls]


def test_the_walk_ends_at_the_first_matmul() -> None:
    assert found(CHAIN, "r", forward=True) == ["c"]
    assert found(CHAIN, "r", forward=False) == ["a"]
    assert found(CHAIN, "y", forward=True) == []


@pytest.mark.parametrize("stop", ["Softmax", "LogSoftmax"])
def test_the_walk_ends_at_a_softmax(stop: str) -> None:
    nodes = f"a = MatMul (x, w)\ns = {stop} (a)\nr = Relu (s)\nt = {stop} (r)\ny = MatMul (t, w)"
    assert found(nodes, "r", forward=True) == found(nodes, "r", forward=False) == []


def test_a_weight_is_no_activation() -> None:
    nodes = "r = Relu (x)\nq = Relu (w)\na = MatMul (w, r)\nb = MatMul (r, q)\ny = Add (a, b)"
    assert found(nodes, "q", forward=True) == []
    assert sorted(map(str, found(nodes, "r", forward=True))) == ["a", "b"]


def test_a_long_walk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_search, "MAX_VALUES", 4)
    nodes = "\n".join(["v0 = Relu (x)", *[f"v{i + 1} = Relu (v{i})" for i in range(6)], "y = MatMul (v6, w)"])
    graph = model(nodes).graph
    assert MatMulSearch(graph).matmuls(value(graph, "v0"), forward=True) == ([], True)


def test_the_walk_enters_and_leaves_bodies() -> None:
    nodes = """r = Relu (x)
y = If (c) <
  then_branch = one () => (float[n, 4] p) { p = MatMul (r, w) },
  else_branch = two () => (float[n, 4] q) { q = Identity (r) }
>"""
    graph = model(nodes, c=np.bool_(True)).graph
    search = MatMulSearch(graph)
    branch = next(node for node in graph if node.op_type == "If")
    bodies = list(bodies_of(branch))
    assert [search.owner(body) for body in (*bodies, graph)] == [branch, branch, None]
    inside = [node for body in bodies for node in body if node.op_type == "MatMul"]
    assert search.matmuls(value(graph, "r"), forward=True) == (inside, False)
    assert search.matmuls(graph.outputs[0], forward=False) == (inside, False)


def test_the_walk_enters_a_body_by_its_inputs_and_leaves_it_by_its_outputs() -> None:
    nodes = """r = Relu (x)
s = Scan <num_scan_inputs = 1, body = step (float[4] i) => (float[4] o) { m = MatMul (i, w)  o = Relu (m) }> (r)
y = MatMul (s, w)"""
    graph = model(nodes).graph
    search = MatMulSearch(graph)
    scan = next(node for node in graph if node.op_type == "Scan")
    (body,) = bodies_of(scan)
    last = graph.outputs[0].producer()
    assert search.matmuls(value(graph, "r"), forward=True)[0] == [last, body[0]]
    assert search.matmuls(body.outputs[0], forward=True)[0] == [last]


@pytest.mark.parametrize(
    ("nodes", "matmul", "convolution"),
    [
        ("y = MatMul (x, w)", True, False),
        ("y = Gemm (x, w)", True, False),
        ('y = Einsum <equation = "ab,bc->ac"> (x, w)', True, False),
        ("y = Conv <kernel_shape = [1]> (x, w)", True, True),
        ("y = Conv <kernel_shape = [3]> (x, w)", False, True),
        ("y = Conv <kernel_shape = [1], group = 4> (x, w)", False, True),
        ("y = Conv (x, k)", True, True),
        ("y = Conv (x, w)", False, True),  # no kernel size is known
        ("y = Relu (x)", False, False),
    ],
)
def test_kinds(nodes: str, matmul: bool, convolution: bool) -> None:
    signature = "(float[n, 4] x, float[4, 4] w, float[4, 4, 1] k) => (y)"
    text = f'<ir_version: 9, opset_import: ["" : 20]> g {signature} {{ {nodes} }}'
    node = ir.from_proto(onnx.parser.parse_model(text)).graph[0]
    assert (is_matmul(node), is_convolution(node)) == (matmul, convolution)
