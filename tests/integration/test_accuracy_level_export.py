"""`--accuracy-level 4` from the export on: what the artifact states, and what runs with and without the library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from graph_passes.custom_ops import ATTENTION, accuracy_level
from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.cli import main
from prosparse_export.runtime import operator_library
from prosparse_export.runtime.operator_library import library_info
from prosparse_export.validation.explain import explain
from prosparse_export.validation.validation_target import open_target

pytestmark = pytest.mark.integration
FAST = ["-q", "--max-tokens", "128", "--context", "64", "--greedy", "4", "--step-tokens", "8"]
PROMPT = np.arange(300, 340)[None]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module", params=["i8", "i4"])
def artifact(request: pytest.FixtureRequest, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "m.onnx"
    result = run("export", demo_folder, path, "-q", "--weights", request.param, "--accuracy-level", 4)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def level_0(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(demo_folder, tmp_path_factory.mktemp("level_0") / "m.onnx", ExportOptions(weights="i8")).path


def logits(path: Path, ids: NDArray[np.int64], *, library: bool) -> NDArray[np.float32]:
    return load(path, library=library).forward(ids, np.ones_like(ids))[0]


def test_manifest_and_info_state_the_level(artifact: Path) -> None:
    manifest = require_manifest(artifact)
    assert manifest.accuracy_level == 4
    assert {accuracy_level(name) for name in manifest.operators if name not in ATTENTION} == {4}
    shown = run("info", artifact)
    assert "accuracy level: 4 (kernels may hold activations with 8 bits)" in shown.stdout
    assert json.loads(run("info", artifact, "--json").stdout)["accuracy_level"] == 4


def test_validate_passes(artifact: Path, demo_folder: Path) -> None:
    result = run("validate", demo_folder, artifact, *FAST)
    assert result.exit_code == 0, result.output


def test_explain_finds_no_fault(artifact: Path, demo_folder: Path) -> None:
    target = open_target(demo_folder, artifact)
    assert explain(target.load(low_memory=False), target, np.arange(300, 364)) == []


def test_tokens_without_the_library_are_those_of_the_body(artifact: Path) -> None:
    model = replace(load(artifact, library=False), stop=frozenset())
    ids = PROMPT
    for _ in range(8):  # anew each time, without a cache
        scores, _ = model.forward(ids, np.ones_like(ids))
        ids = np.concatenate([ids, scores[:, -1:].argmax(-1)], axis=1)
    tokens = np.stack(list(model.stream(PROMPT.tolist(), max_new_tokens=8)), 1)
    np.testing.assert_array_equal(tokens, ids[:, PROMPT.shape[1] :])


def _has_byte_dots() -> bool:
    isa = library_info().isa_used or ""
    return isa in {"avx-vnni", "neon-dotprod", "neon-i8mm"} or isa.startswith("avx512-")


def test_the_body_and_the_kernels_of_few_tokens_round(level_0: Path, demo_folder: Path, tmp_path: Path) -> None:
    path = export_model(demo_folder, tmp_path / "m.onnx", ExportOptions(weights="i8", accuracy_level=4)).path
    few = PROMPT[:, :4]
    exact = logits(level_0, few, library=True)
    for library in (False, True):
        rounded = logits(path, few, library=library)
        difference = np.abs(exact - rounded).max() / np.abs(exact).max()
        # I8 keeps 16 bits where there are no byte dot products, and all of level 0 where there are no dot products
        least = 1e-4 if not library or _has_byte_dots() else 0.0
        assert least <= difference < 0.1


def test_a_library_without_these_operators_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = replace(library_info(), operators=tuple(o for o in library_info().operators if accuracy_level(o) == 0))
    monkeypatch.setattr(operator_library, "library_info", lambda: older)
    with pytest.raises(ProSparseError, match=r"without LinearI\dA8, .*SparseGatedFFNI\w+A8$") as caught:
        load(artifact)
    assert "or newer" in str(caught.value.hint)
    assert logits(artifact, PROMPT, library=False).shape[1] == PROMPT.shape[1]


@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_float_weights_have_no_level_4(weights: str, demo_folder: Path, tmp_path: Path) -> None:
    result = run("export", demo_folder, tmp_path / "m.onnx", "--weights", weights, "--accuracy-level", 4)
    assert result.exit_code == 1
    error, hint = result.stderr.strip().splitlines()[-2:]
    assert error == f"error: accuracy level: 4 applies to integer weights, got {weights} weights"
    assert hint == "hint: pass --weights i8, i4, or nl4, or omit --accuracy-level"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "optimize"])
def test_other_levels_are_usage_errors(command: str, demo_folder: Path, tmp_path: Path) -> None:
    source = demo_folder if command == "export" else tmp_path / "in.onnx"
    result = run(command, source, tmp_path / "m.onnx", "--accuracy-level", 2)
    assert result.exit_code == 2
    assert "'--accuracy-level': '2' is not one of '0', '1', '4'" in result.stderr
