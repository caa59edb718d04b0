"""Linear layers of a graph that are modules of the model, and their values in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from graph_passes.custom_ops import DOMAIN, VERSION
from prosparse_export.validation.linear_nodes import (
    LinearNode,
    are_linear,
    exact_linear,
    find_linear_nodes,
    load_linear,
)

IN, OUT = 32, 4
TEXT = """<ir_version: 9, opset_import: ["" : 20, "DOMAIN" : VERSION]> g (float[n, 32] x) => (y, z) {
a = DOMAIN.LinearI8 (x, q, s, b)
m = MatMul (x, w)
y = Add (m, b)
z = MatMul (x, w)
}"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(IN, OUT)
        self.second = nn.Linear(IN, OUT)
        self.norm = nn.LayerNorm(IN)
        self.bare = nn.Linear(IN, OUT, bias=False)


def graph() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(TEXT.replace("DOMAIN", DOMAIN).replace("VERSION", str(VERSION)))
    for node, name in zip(proto.graph.node, ["first", "second", "add", "norm"], strict=True):
        node.name = name
    arrays = {"q": np.ones((OUT, IN), np.int8), "s": np.ones((OUT, 1), np.float16), "b": np.ones(OUT, np.float32)}
    arrays["w"] = np.ones((IN, OUT), np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def test_layers_are_found_by_their_names() -> None:
    assert find_linear_nodes(graph(), Model()) == [  # a norm is no linear layer, whatever its node is
        LinearNode("first", "LinearI8", "i8", 0, "x", "a", ("q", "s"), False, "b"),
        LinearNode("second", "MatMul", "f32", 1, "x", "y", ("w",), True, "b"),
    ]


def test_packed_layers_need_all_parts() -> None:
    proto = graph()
    proto.graph.node[0].name = "first+second"
    assert [node.module for node in find_linear_nodes(proto, Model())] == ["first+second", "second"]
    proto.graph.node[0].name = "first+other"
    assert [node.module for node in find_linear_nodes(proto, Model())] == ["second"]


def test_are_linear() -> None:
    model = Model()
    assert are_linear(model, ["first", "bare"])
    assert not are_linear(model, [])
    assert not are_linear(model, ["first", "norm"])
    assert not are_linear(model, ["other"])


def unread(name: str) -> np.ndarray:
    raise AssertionError(f"a float matrix has no scales: {name}")


def node(module: str, *, transposed: bool, bias: str) -> LinearNode:
    return LinearNode(module, "MatMul", "f32", 0, "x", "y", ("w",), transposed, bias)


@pytest.mark.parametrize("transposed", [False, True])
def test_expected_initializers(transposed: bool) -> None:
    model = Model()
    checkpoint = SimpleNamespace(model=model, weights=None)
    first, second, bare = (layer.weight.detach().numpy() for layer in (model.first, model.second, model.bare))
    expected, matrix, bias = load_linear(checkpoint, node("first+bare", transposed=transposed, bias="b"), unread)
    np.testing.assert_array_equal(matrix, np.concatenate([first, bare]))
    np.testing.assert_array_equal(bias, np.concatenate([model.first.bias.detach().numpy(), np.zeros(OUT)]))
    np.testing.assert_array_equal(expected["w"], matrix.T if transposed else matrix)
    np.testing.assert_array_equal(expected["b"], bias)
    expected, matrix, _ = load_linear(checkpoint, node("second", transposed=transposed, bias=""), unread)
    np.testing.assert_array_equal(matrix, second)
    assert list(expected) == ["w"]


def test_float32_arithmetic_is_within_the_bound() -> None:
    rng = np.random.default_rng(0)
    x, matrix, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, IN), (2050, IN), (2050,)))
    wide = x.astype(np.float64)
    values, bound = exact_linear(wide, matrix, bias, rounds=False)  # more rows than are converted at a time
    np.testing.assert_allclose(values, wide @ matrix.T.astype(np.float64) + bias, rtol=1e-12, atol=1e-12)
    assert values.shape == bound.shape == (5, 2050)
    computed = torch.from_numpy(x) @ torch.from_numpy(matrix).T + torch.from_numpy(bias)
    assert (np.abs(computed.numpy() - values) <= bound).all()
    assert bound.max() < 1e-3
    rounded = exact_linear(wide, matrix, bias, rounds=True)[1]
    assert (rounded > bound).all()
