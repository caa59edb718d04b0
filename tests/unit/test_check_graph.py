"""Graphs that cannot run are rejected with the node or value at fault."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_graph import check_graph, graphs_of

PATH = Path("m.onnx")
BODY = """y = If (c) <
  then_branch = one () => (float[4] p) { p = Relu (x) },
  else_branch = two () => (float[4] q) { q = INNER }
>"""
FUNCTION = '\n<domain: "own", opset_import: ["" : 20]>\nf (a) => (b) { b = NODE }'


def model(nodes: str, function: str = "") -> onnx.ModelProto:
    head = '<ir_version: 9, opset_import: ["" : 20, "own" : 1]>'
    return onnx.parser.parse_model(f"{head} g (float[4] x, bool c) => (float[4] y) {{\n{nodes}\n}}{function}")


def check(proto: onnx.ModelProto) -> None:
    check_graph(PATH, ir.from_proto(proto))


@pytest.mark.parametrize(
    ("nodes", "function"),
    [
        ("a = Relu (x)\ny = Add (a, x)", ""),
        ("y = Clip (x)", ""),  # optional inputs
        (BODY.replace("INNER", "Neg (x)"), ""),  # a value of the outer graph
        ("y = own.f (x)", FUNCTION.replace("NODE", "Relu (a)")),
        ("y = own.g (x, x, x)", ""),  # an unknown operator
    ],
)
def test_graphs_that_can_run(nodes: str, function: str) -> None:
    check(model(nodes, function))


def test_nodes_are_sorted() -> None:
    proto = model("a = Relu (x)\ny = Neg (a)")
    proto.graph.node.reverse()
    graph = ir.from_proto(proto)
    check_graph(PATH, graph)
    assert [node.op_type for node in graph.graph] == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("nodes", "function", "message"),
    [
        ("a = Add (x, b)\nb = Relu (a)\ny = Relu (a)", "", "the graph has a cycle"),
        ("y = Relu (w)", "", "node 'y': no node produces its input 'w'"),
        ("z = Relu (x)", "", "no node produces the graph output 'y'"),
        (BODY.replace("INNER", "Neg (w)"), "", "node 'q': no node produces its input 'w'"),
        (
            "y = Add (x)",
            "",
            "node 'y': Add: expected 2 inputs and at least 1 outputs, got 1 and 1",
        ),
        (
            "y = Clip (x, x, x, x)",
            "",
            "node 'y': Clip: expected 1 to 3 inputs and at least 1 outputs, got 4 and 1",
        ),
        ("y = Add (, x)", "", "node 'y': Add: required input A is missing"),
        (
            "y = own.f (x)",
            FUNCTION.replace("NODE", "Mul (a)"),
            "node 'b': Mul: expected 2 inputs and at least 1 outputs, got 1 and 1",
        ),
    ],
)
def test_graphs_that_cannot_run(nodes: str, function: str, message: str) -> None:
    with pytest.raises(ProSparseError) as caught:
        check(model(nodes, function))
    assert str(caught.value) == f"model: m.onnx: {message}"
    assert caught.value.hint == "copy or export the file again"


def test_graphs_of_a_model() -> None:
    function = FUNCTION.replace("NODE", "Relu (a)")
    graph = ir.from_proto(model(BODY.replace("INNER", "own.f (x)"), function))
    assert [graph.name for graph in graphs_of(graph)] == ["g", "one", "two", "f"]
