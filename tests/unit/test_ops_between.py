"""Operators between two values of a graph."""

from __future__ import annotations

import onnx

from prosparse_export.validation.ops_between import OpsBetween


def test_operators_between() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Gather", ["table", "ids"], ["e"]),
        make("SimplifiedLayerNormalization", ["e", "w"], ["n"]),
        make("MatMul", ["n", "q"], ["qx"]),
        make("Reshape", ["qx", "s"], ["qr"]),
        make("GroupQueryAttention", ["qr", "mask"], ["a"]),
        make("Add", ["a", "e"], ["h"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1]) for name in ("ids", "mask", "past")]
    outputs = [onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs))
    between = OpsBetween(model, {"qx"})
    assert between("n", from_inputs=True) == "from ids through SimplifiedLayerNormalization"
    assert between("a") == "GroupQueryAttention"
    assert between("qr") == ""
    assert between("e") == "Gather"
