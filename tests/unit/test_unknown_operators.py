"""Operators in a graph that the operator library does not implement, which onnxruntime would run densely."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from graph_passes.custom_ops import DOMAIN, names
from prosparse_export.analysis.unknown_operators import unknown_to_the_library


def model_of(operators: list[str]) -> onnx.ModelProto:
    nodes = [helper.make_node(op, ["x"], [f"y{i}"], domain=DOMAIN) for i, op in enumerate(operators)]
    nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def test_every_operator_is_known() -> None:
    assert unknown_to_the_library(model_of(list(names()))) == []


@pytest.mark.parametrize("op", ["SparseGatedFFNF8", "LinearI2", "Other"])
def test_names_what_it_does_not_implement(op: str) -> None:
    assert unknown_to_the_library(model_of([op, names()[0], op])) == [op]
