"""Rows of a graph are left-aligned, and the last hidden state is restored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate, graph_of

from graph_passes.left_align_rows import left_align_rows, lm_head

HEAD = "logits = MatMul (hidden, w)"
SCALED = "z = MatMul (hidden, w)\nlogits = Mul (z, two)"


def model(head: str) -> ir.Model:
    """A decoder that returns id + 100 * position as its hidden state, so that the order of tokens shows."""
    nodes = f"""f = Cast <to = 1> (input_ids)
p = Cast <to = 1> (position_ids)
far = Mul (p, hundred)
sum = Add (f, far)
hidden = Unsqueeze (sum, last)
{head}"""
    graph = graph_of(
        nodes,
        "int64[b, s] input_ids, int64[b, t] attention_mask, int64[b, s] position_ids",
        "float[b, s, 1] logits",
        last=np.array([-1]),
        hundred=np.float32(100),
        two=np.float32(2),
        w=np.ones((1, 1), np.float32),
    )
    for node in graph.graph:
        if node.outputs[0].name == "hidden":
            node.outputs[0].shape = ir.Shape(["b", "s", 1])
    return graph


@pytest.mark.parametrize(("head", "factor"), [(HEAD, 1), (SCALED, 2)])
def test_padding_moves_to_the_right_inside(head: str, factor: int) -> None:
    graph = model(head)
    found = lm_head(graph.graph)
    assert found is not None
    assert found.op_type == "MatMul"
    seqlens, total = left_align_rows(graph.graph, {value.name: value for value in graph.graph.inputs}, found)
    inside = next(value for node in graph.graph for value in node.outputs if value.name == "sum")
    for value in (inside, seqlens, total):
        value.type = value.type or ir.TensorType(ir.DataType.INT32)
        graph.graph.outputs.append(value)
    ids = np.array([[1, 2, 3], [0, 0, 7]])
    mask = np.array([[1, 1, 1], [0, 0, 1]])
    positions = np.array([[0, 1, 2], [0, 0, 0]])
    logits, aligned, lengths, width = evaluate(graph, input_ids=ids, attention_mask=mask, position_ids=positions)
    np.testing.assert_array_equal(aligned, [[1, 102, 203], [7, 0, 0]])
    np.testing.assert_array_equal(logits[..., 0], factor * (ids + 100 * positions))
    assert lengths.tolist() == [2, 0]
    assert width.tolist() == 3


def test_other_last_nodes_are_no_head() -> None:
    assert lm_head(model("logits = Softmax (hidden)").graph) is None
