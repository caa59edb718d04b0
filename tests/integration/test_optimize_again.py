"""``prosparse optimize`` on a model that has com.prosparse operators already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from support.families import family
from support.model_sizes import VOCAB

from graph_passes.custom_ops import ATTENTION
from prosparse_export import ExportOptions, ProSparseError, export_model, load, optimize_file
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.cli import main

pytestmark = pytest.mark.integration


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node if node.domain == "com.prosparse"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model exported in each of two formats."""
    folder = tmp_path_factory.mktemp("llama")
    family("LLaMA (ReluLLaMA)").save(folder / "m")
    return {
        weights: export_model(folder / "m", folder / weights / "m.onnx", ExportOptions(weights=weights)).path  # type: ignore[arg-type]
        for weights in ("f32", "i8")
    }


@pytest.mark.parametrize(("stored", "asked"), [("f32", "i8"), ("i8", "f32"), ("f32", "source"), ("i8", "i8")])
def test_operators_keep_their_format_and_the_manifest_records_it(
    stored: str, asked: str, exported: dict[str, Path], tmp_path: Path
) -> None:
    first = exported[stored]
    paths = [first]
    for name in ("two", "three"):
        path = tmp_path / name / "m.onnx"
        result = CliRunner().invoke(main, ["optimize", str(paths[-1]), str(path), "--weights", asked, "-q"])
        assert result.exit_code == 0, result.output
        paths.append(path)
        manifest = require_manifest(path)
        count = sum(op not in ATTENTION for op in operators(first))
        assert manifest.weight_format is None
        assert manifest.already_sparse == {stored: count}
        assert manifest.rewritten == ()
        assert manifest.output_check.outputs_compared
        assert manifest.output_check.largest_difference == 0.0
        assert f"kept {count} sparse operators of the source ({stored})" in result.stdout
        assert ("hint: sparse operators keep their format" in result.stderr) == (asked not in ("source", stored))
        assert operators(path) == operators(first)
    for name in ("config.json", "generation_config.json"):
        (paths[-1].parent / name).write_bytes((first.parent / name).read_bytes())
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 9))
    for library in (True, False):
        expected, actual = (
            load(path, library=library).forward(ids, np.ones_like(ids))[0] for path in (first, paths[-1])
        )
        np.testing.assert_array_equal(actual, expected)


def test_operators_of_a_newer_version_are_named(tmp_path: Path) -> None:
    node = helper.make_node("SparseFFNI2", ["x"], ["y"], domain="com.prosparse")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 8]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.prosparse", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(ProSparseError, match="operators of this version, got SparseFFNI2") as caught:
        optimize_file(tmp_path / "m.onnx", tmp_path / "out" / "m.onnx")
    assert "upgrade" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
