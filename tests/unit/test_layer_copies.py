"""What makes a layer of a graph something else than a copy of another one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.layered_graphs import NODES, SCOPES, layered, owned

from graph_passes.patterns.layer_copies import CannotStampError, carried_value, read_layers

TRACED = [0, 4]


def compare(model: ir.Model) -> str | None:
    tensors = owned(model, TRACED)
    first, last = read_layers(model.graph, "model.layers", TRACED, tensors)
    return carried_value(first, last, tensors).name


def test_copies_take_one_value_from_the_layer_before() -> None:
    model = layered(TRACED)
    assert compare(model) == "h0"
    first, last = read_layers(model.graph, "model.layers", TRACED, owned(model, TRACED))
    assert (first.taken, first.result.name, last.result.name) == ([], "h0", "h1")
    assert len(first.nodes) == len(last.nodes) == 7


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({1: NODES.replace("Tanh", "Relu")}, "layers 0 and 4 differ: Tanh .* and Relu"),
        ({1: NODES.replace("keepdims = 1", "keepdims = 1, noop_with_empty_axes = 1")}, "ReduceMean"),
        ({1: NODES.replace("(m{i}, two)", "(two, m{i})")}, "Mul"),
        ({1: NODES.replace("(m{i}, two)", "(m{i}, m{i})")}, "Mul .* input 1"),
        ({1: NODES + "\nu{i} = Relu (h{i})"}, "7 and 8 nodes"),
        ({1: NODES.replace("(m{i}, two)", "(m{i}, t0)")}, "layer 0 has 2 results, expected one|differ"),
        ({1: NODES.replace("(k{i}, {h})", "(k0, {h})")}, "reads the KV cache of another layer"),
        ({1: NODES.replace("({h}, w{i})", "({h}, w0)")}, "of layer 0, is read by another part"),
    ],
)
def test_what_is_no_copy(nodes: dict[int, str], reason: str) -> None:
    with pytest.raises(CannotStampError, match=reason):
        compare(layered(TRACED, nodes=nodes))


def test_a_node_between_those_of_a_layer_belongs_to_it() -> None:
    model = layered(TRACED)
    for node in model.graph:
        if node.op_type in ("Tanh", "ReduceMean"):
            del node.metadata_props[SCOPES]
    first, last = read_layers(model.graph, "model.layers", TRACED, owned(model, TRACED))
    assert len(first.nodes) == len(last.nodes) == 7
    assert compare(model) == "h0"


def test_a_value_that_every_layer_reads_is_not_carried() -> None:
    assert compare(layered(TRACED, nodes={1: NODES.replace("Add ({h}, c{i})", "Add (x, c{i})")})) == "h0"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("y = Mul ({h}, h0)", "computed by layer 0, is read outside the layers"),
        ("z = MatMul ({h}, w0)\ny = Mul (z, two)", "of layer 0, is read by another part"),
    ],
)
def test_what_the_rest_of_the_graph_must_not_read(last: str, reason: str) -> None:
    with pytest.raises(CannotStampError, match=reason):
        compare(layered(TRACED, last=last))


def test_a_constant_that_differs_between_layers() -> None:
    model = layered(TRACED, nodes={1: NODES.replace("(m{i}, two)", "(m{i}, other)")})
    value = ir.Value(name="other", const_value=ir.tensor(np.float32(2.0), name="other"))
    graph = model.graph
    mul = [node for node in graph if node.op_type == "Mul"][1]
    missing = mul.inputs[1]
    assert missing is not None
    graph.register_initializer(value)
    mul.replace_input_with(1, value)
    assert compare(model) == "h0"  # equal contents
    value.const_value = ir.tensor(np.float32(3.0), name="other")
    with pytest.raises(CannotStampError, match="expected one value from the layer before, found 2"):
        compare(model)


def test_a_layer_that_reads_two_layers_back() -> None:
    nodes = {2: NODES.replace("(m{i}, two)", "(m{i}, t0)")}
    model = layered([0, 1, 4], nodes=nodes)
    with pytest.raises(CannotStampError, match="t0, computed by layer 0, is read by layer 4"):
        read_layers(model.graph, "model.layers", [0, 1, 4], owned(model, [0, 1, 4]))
