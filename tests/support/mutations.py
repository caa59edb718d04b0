"""Deliberate faults in artifacts: edited copies, and the verdict of `validate` on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from graph_passes.custom_ops import ATTENTION
from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes
from prosparse_export.text import default_text
from prosparse_export.validation import Validation, ValidationOptions, validate
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = [
    "LAYER",
    "Edit",
    "assert_named",
    "attention",
    "busiest",
    "change_weight",
    "changed",
    "check",
    "failed",
    "ffn_node",
    "insert_before",
]

Edit = Callable[[onnx.ModelProto], None]
SMALL = ValidationOptions(tokens=128, context=96, greedy=8, step_tokens=16, explain=True)  # default limits
LAYER = 2


def changed(artifact: Path, folder: Path, edit: Edit) -> Path:
    """Return an edited copy of the artifact with its weights inside the graph."""
    shutil.copytree(artifact.parent, folder, dirs_exist_ok=True)
    model = onnx.load(folder / artifact.name)
    edit(model)
    (folder / f"{artifact.name}.data").unlink(missing_ok=True)
    onnx.save(model, folder / artifact.name)
    manifest = json.loads((folder / "prosparse.json").read_text())
    del manifest["files"]  # sizes and hashes would tell
    (folder / "prosparse.json").write_text(json.dumps(manifest))
    return folder / artifact.name


def check(folder: Path, artifact: Path, **options: Any) -> Validation:
    return validate(folder, artifact, replace(SMALL, **options))


def failed(result: Validation) -> list[str]:
    return [c.name for c in result.checks if not c.passed]


def ffn_node(model: onnx.ModelProto, layer: int = LAYER) -> onnx.NodeProto:
    return ffn_nodes(model)[layer].node


def attention(model: onnx.ModelProto, layer: int = LAYER) -> onnx.NodeProto:
    return [n for n in model.graph.node if n.op_type in ATTENTION][layer]


def insert_before(model: onnx.ModelProto, node: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    place = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    for offset, item in enumerate(new):
        model.graph.node.insert(place + offset, item)


def change_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def busiest(artifact: Path, demo_folder: Path) -> int:
    ids = np.asarray(load_tokenizer(demo_folder)(default_text()[:2000])["input_ids"][:48], np.int64)
    return int(measure_activity(artifact, [ids]).layers[LAYER].per_neuron.argmax())


def assert_named(result: Validation, layer: int, op: str) -> None:
    assert not result.passed
    assert result.findings, failed(result)
    for finding in result.findings:
        assert finding.layer == layer, list(map(str, result.findings))
        assert finding.op.startswith(op), list(map(str, result.findings))
