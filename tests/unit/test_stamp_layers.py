"""Layers that were not traced, as copies of those that were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate
from support.layered_graphs import NODES, SCOPES, WIDTH, layered, owned, read
from support.same_graph import first_difference

from graph_passes import CannotStampError, StampLayersPass

SQUARED = NODES.replace("Tanh (a{i})", "Mul (a{i}, a{i})")


def stamped(traced: list[int], kinds: str, **graph: object) -> ir.Model:
    """A model with a layer for each letter of ``kinds``, of which ``traced`` are in the graph."""
    model = layered(traced, **graph)  # type: ignore[arg-type]
    first = [kinds.index(kind) for kind in kinds]
    template = [kinds.rindex(kind) for kind in kinds]
    result = StampLayersPass("model.layers", traced, first, template, owned(model, traced), read)(model)
    assert result.modified == (len(traced) < len(kinds))
    return result.model


@pytest.mark.parametrize(
    ("traced", "kinds"),
    [([0, 4], "aaaaa"), ([0, 1, 3, 4], "abaab"), ([0, 2, 6, 7], "aabaaaab"), ([0, 1, 3, 4], "abbbc"), ([0, 1], "aa")],
)
def test_the_graph_is_that_of_all_layers(traced: list[int], kinds: str) -> None:
    def nodes(layers: list[int]) -> dict[int, str]:
        return {i: SQUARED if kinds[layer] == "b" else NODES for i, layer in enumerate(layers)}

    model = stamped(traced, kinds, nodes=nodes(traced))
    every = list(range(len(kinds)))
    whole = layered(every, nodes=nodes(every))
    assert first_difference(model, whole) == ""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 3, WIDTH)).astype(np.float32)}
    for layer in every:
        feeds[f"input.past_key_values.layers.{layer}.keys"] = rng.standard_normal((2, 5, WIDTH)).astype(np.float32)
    for ours, theirs in zip(evaluate(model, **feeds), evaluate(whole, **feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_names_and_module_paths_are_the_layers_own() -> None:
    model = stamped([0, 3], "aaaa")
    assert [value.name for value in model.graph.inputs] == [
        "x",
        *(f"input.past_key_values.layers.{layer}.keys" for layer in range(4)),
    ]
    assert {name for name in model.graph.initializers if "weight" in name} == {
        f"model.layers.{layer}.linear.weight" for layer in range(4)
    }
    scopes = [node.metadata_props[SCOPES] for node in model.graph if node.op_type == "Tanh"]
    assert [f"model.layers.{layer}'" in scope for layer, scope in enumerate(scopes)] == [True] * 4
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_the_rest_may_take_the_past_length_from_the_last_layer() -> None:
    after = "n = Shape (k1)\nm = Cast <to = 1> (n)\nr = ReduceSum <keepdims = 0> (m)\ny = Mul ({h}, r)"
    model = stamped([0, 3], "aaaa", last=after)
    shape = next(node for node in model.graph if node.op_type == "Shape")
    assert shape.inputs[0] is not None
    assert shape.inputs[0].name == "input.past_key_values.layers.3.keys"


def test_a_graph_that_cannot_be_completed_stays_as_it_was() -> None:
    model = layered([0, 4], nodes={1: SQUARED})
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with pytest.raises(CannotStampError, match=r"layers 0 and 4 differ: Tanh .* and Mul"):
        StampLayersPass("model.layers", [0, 4], [0] * 5, [4] * 5, owned(model, [0, 4]), read)(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
