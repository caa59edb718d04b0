"""Graphs of a few layers, as the exporter names them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graph_passes import LayerTensor
from support.graphs import graph_of

SCOPES = "pkg.torch.onnx.name_scopes"
WIDTH = 4


def weight(layer: int) -> np.ndarray:
    return np.random.default_rng(layer).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def layered(layers: list[int], *, nodes: dict[int, str] | None = None, last: str = "") -> ir.Model:
    """A model of ``layers``: ``h = c + tanh(h @ w)``, ``c = Concat(cache, h)``'s last row, and ``y = h * scale``.

    Args:
        layers: indices in the complete model, whose weights they get.
        nodes: other nodes of a layer, by position: ONNX text with {i} for the position and {h} for its input.
        last: nodes after the layers, in place of ``y = Mul (h, two)``, with {h} for their input.
    """
    text, scopes, initializers = [], [], {"two": np.float32(2.0), "axis": np.array([1], np.int64)}
    for i, layer in enumerate(layers):
        body = (nodes or {}).get(i, NODES).format(i=i, h=f"h{i - 1}" if i else "x")
        text += body.splitlines()
        scopes += [f"model.layers.{i}"] * len(body.splitlines())
        initializers[f"w{i}"] = weight(layer)
    after = (last or "y = Mul ({h}, two)").format(h=f"h{len(layers) - 1}").splitlines()
    caches = ", ".join(f"float[b, p, {WIDTH}] k{i}" for i in range(len(layers)))
    outputs = ", ".join(f"float[b, q, {WIDTH}] o{i}" for i in range(len(layers)))
    model = graph_of(
        "\n".join([*text, *after]),
        f"float[b, s, {WIDTH}] x, {caches}",
        f"float[b, s, {WIDTH}] y, {outputs}",
        **initializers,
    )
    for node, scope in zip(model.graph, [*scopes, *[""] * len(after)], strict=True):
        node.metadata_props[SCOPES] = repr(["", scope, node.outputs[0].name] if scope else ["", "y"])
    for i in range(len(layers)):
        model.graph.initializers[f"w{i}"].name = f"model.layers.{i}.linear.weight"
    for kind, values in (("input", model.graph.inputs[1:]), ("output", model.graph.outputs[1:])):
        for i, value in enumerate(values):
            value.name = f"{kind}.past_key_values.layers.{i}.keys"
    return model


NODES = """o{i} = Concat <axis = 1> (k{i}, {h})
a{i} = MatMul ({h}, model_w{i})
t{i} = Tanh (a{i})
m{i} = ReduceMean <keepdims = 1> (o{i}, axis)
s{i} = Mul (m{i}, two)
c{i} = Add (t{i}, s{i})
h{i} = Add ({h}, c{i})""".replace("model_w", "w")


def owned(model: ir.Model, layers: list[int]) -> dict[ir.Value, LayerTensor]:
    """The layers' weights."""
    values = model.graph.initializers
    return {
        values[f"model.layers.{i}.linear.weight"]: LayerTensor(layer, "linear.weight") for i, layer in enumerate(layers)
    }


def read(layer: int, key: object) -> ir.TensorProtocol:
    assert key == "linear.weight"
    return ir.tensor(weight(layer))
