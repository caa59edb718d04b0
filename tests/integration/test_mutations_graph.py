"""Deliberate faults in the graph: validate fails at its default limits, and --explain names layer and operator."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper
from support.mutations import LAYER, Edit, assert_named, attention, changed, check, ffn_node, insert_before

pytestmark = pytest.mark.integration


def wrong_threshold(model: onnx.ModelProto) -> None:
    next(a for a in ffn_node(model).attribute if a.name == "threshold").f = 0.02


def relu_on_the_wrong_branch(model: onnx.ModelProto) -> None:
    node = ffn_node(model)
    node.input[1], node.input[3] = node.input[3], node.input[1]


def swapped_gate_and_up(model: onnx.ModelProto) -> None:
    tensors = {t.name: t for t in model.graph.initializer}
    gate, up = tensors[ffn_node(model).input[1]], tensors[ffn_node(model).input[3]]
    gate.raw_data, up.raw_data = up.raw_data, gate.raw_data


def off_by_one_past_length(model: onnx.ModelProto) -> None:
    node = attention(model)
    one = helper.make_tensor("f.one", onnx.TensorProto.INT64, [1], [1])
    new = [
        helper.make_node("Shape", [node.input[1]], ["f.past"], start=2, end=3),
        helper.make_node("Constant", [], ["f.one"], value=one),
        helper.make_node("Min", ["f.past", "f.one"], ["f.some"]),
        helper.make_node("Cast", ["f.some"], ["f.some32"], to=onnx.TensorProto.INT32),
        helper.make_node("Sub", [node.input[3], "f.some32"], ["f.lengths"]),
    ]
    insert_before(model, node, new)
    node = attention(model)
    node.input[3] = "f.lengths"


def stale_slot(model: onnx.ModelProto) -> None:
    node = attention(model)
    constants = {"f.0": 0, "f.1": 1, "f.end": 2**62, "f.axis": 2}
    new = [
        helper.make_node("Constant", [], [n], value=helper.make_tensor(n, onnx.TensorProto.INT64, [1], [v]))
        for n, v in constants.items()
    ]
    past = node.input[1]
    new += [
        helper.make_node("Slice", [past, "f.1", "f.end", "f.axis"], ["f.rest"]),
        helper.make_node("Slice", [past, "f.0", "f.1", "f.axis"], ["f.first"]),
        helper.make_node("Concat", ["f.rest", "f.first"], ["f.rotated"], axis=2),
    ]
    insert_before(model, node, new)
    attention(model).input[1] = "f.rotated"


def attention_window_too_short(model: onnx.ModelProto) -> None:
    """Only tokens after the fiftieth are affected."""
    next(a for a in attention(model).attribute if a.name == "local_window_size").i = 50


def padding_ignored(model: onnx.ModelProto) -> None:
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    users = [n for n in model.graph.node if "attention_mask" in n.input]
    for node in users:
        node.input[list(node.input).index("attention_mask")] = "f.mask"
    shape = helper.make_node("Shape", ["attention_mask"], ["f.shape"])
    model.graph.node.insert(0, shape)
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["f.shape"], ["f.mask"], value=one))


GRAPH_FAULTS: dict[str, tuple[Edit, int, str]] = {
    "wrong threshold": (wrong_threshold, LAYER, "SparseGatedFFNBF16"),
    "swapped gate and up": (swapped_gate_and_up, LAYER, "SparseGatedFFNBF16"),
    "ReLU on the wrong branch": (relu_on_the_wrong_branch, LAYER, "SparseGatedFFNBF16"),
    "off by one past length": (off_by_one_past_length, LAYER, "RotaryCachedAttentionF32"),
    "stale KV slot": (stale_slot, LAYER, "RotaryCachedAttentionF32"),
    "attention window too short": (attention_window_too_short, LAYER, "RotaryCachedAttentionF32"),
    "padding ignored": (padding_ignored, 0, "from input_ids, attention_mask"),
}


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_fault_in_the_graph(fault: str, demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    edit, layer, op = GRAPH_FAULTS[fault]
    assert_named(check(demo_folder, changed(demo_artifact, tmp_path, edit)), layer, op)
