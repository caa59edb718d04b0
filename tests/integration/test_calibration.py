"""A threshold search, from ``prosparse calibrate`` through the export to the report's figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import run_command

from prosparse_export import ProSparseError, export_model
from prosparse_export.report import ReportOptions, measure
from prosparse_export.report.charts import draw
from prosparse_export.report.page import render_page
from prosparse_models import load_checkpoint
from prosparse_models.loading.calibration_file import CALIBRATION_FILE
from prosparse_models.training.sparsify_options import SparsifyOptions

pytestmark = pytest.mark.integration


def run(*arguments: object) -> str:
    done = run_command(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module", params=[False, True], ids=["one threshold", "per layer"])
def calibrated(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    trained_folder: Path,
    training_options: SparsifyOptions,
) -> tuple[Path, dict[str, Any]]:
    """A folder and the printed JSON: one threshold, written to a new folder; or per layer, in place."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    arguments: list[object] = [trained_folder, folder]
    if request.param:
        shutil.copytree(trained_folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
        arguments = [folder, "--in-place", "--per-layer"]
    text = ["--text", training_options.eval_text[0], "--context", 32, "--tokens", 512]
    return folder, json.loads(run("calibrate", *arguments, *text, "--budget", "2%", "--json", "-q"))


def test_finds_the_largest_threshold_within_the_budget(
    calibrated: tuple[Path, dict[str, Any]], trained_folder: Path
) -> None:
    folder, result = calibrated
    trials, chosen = result["trials"], result["chosen"]
    per_layer = len(set(chosen["thresholds"])) > 1
    values = [t["value"] for t in trials]
    assert values == sorted(values)
    assert {0.0, 1e-4, 1e-3, 1e-2} <= set(values) if per_layer else {0.0, 0.005, 0.01, 0.02, 0.03} <= set(values)
    assert result["perplexity_limit"] == pytest.approx(1.02 * trials[0]["perplexity"], rel=1e-12)
    assert chosen["perplexity"] <= result["perplexity_limit"]
    above = [t for t in trials if t["value"] > chosen["value"]]
    assert above[0]["perplexity"] > result["perplexity_limit"]
    assert above[0]["value"] <= 1.1 * chosen["value"]  # bisected
    assert chosen["sparsity"] > trials[0]["sparsity"]
    assert [t["sparsity"] for t in trials] == sorted(t["sparsity"] for t in trials)
    config = json.loads((folder / "config.json").read_text())
    expected = chosen["thresholds"] if per_layer else chosen["value"]
    assert (config["hidden_act"], config["hidden_act_param"]) == ("fatrelu", expected)
    loaded = load_checkpoint(folder)
    assert loaded.threshold == min(chosen["thresholds"])
    assert loaded.config["hidden_act_param"] == expected
    assert json.loads((trained_folder / "config.json").read_text())["hidden_act"] == "relu"  # the source is unchanged


def test_search_reaches_the_report(calibrated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = calibrated
    kept = json.loads((folder / CALIBRATION_FILE).read_text())
    per_layer = kept["search_parameter"] == "energy dropped"
    assert per_layer or kept["search_parameter"] == "threshold"
    assert kept["hidden_act_param"] == json.loads((folder / "config.json").read_text())["hidden_act_param"]
    assert kept["chosen"] in kept["trials"]
    assert kept["chosen"]["value"] == result["chosen"]["value"]
    assert kept["perplexity_limit"] == result["perplexity_limit"]
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]  # no temporary file is left
    points = [(t["value"], t["sparsity"], t["perplexity"]) for t in result["trials"]]
    assert len(points) > 5

    output = tmp_path / "m.onnx"
    assert run("export", folder, output, "-q").startswith(str(output))
    manifest = json.loads((tmp_path / "prosparse.json").read_text())
    recorded = manifest["calibration"]
    assert [(p["value"], p["sparsity"], p["perplexity"]) for p in recorded["trials"]] == points
    (line,) = [line for line in run("info", output).splitlines() if line.startswith("calibrated: ")]
    assert f"perplexity {points[0][2]:.4g} -> {result['chosen']['perplexity']:.4g} (budget +2.00%)" in line
    assert ("of each layer's energy dropped" in line) == per_layer

    report = measure(output, [("t", "the sparse model skips what is zero " * 20)], ReportOptions(64, 64, speed=False))
    axes, other = draw("calibration", report).axes
    drawn = (axes.lines[0].get_xdata(), axes.lines[0].get_ydata(), other.lines[0].get_ydata())
    assert list(zip(*drawn, strict=True)) == [(value, 100 * sparsity, p) for value, sparsity, p in points]
    assert axes.get_xlabel().startswith("fraction of each layer's energy dropped" if per_layer else "threshold")
    page = render_page(report)
    assert 'id="figure-calibration"' in page
    chosen = result["chosen"]
    figures = f"sparsity {100 * chosen['sparsity']:.2f}%, perplexity {chosen['perplexity']:.4g}"
    assert f"{figures} within a budget of" in page


def test_a_folder_in_the_way_is_kept(
    calibrated: tuple[Path, dict[str, Any]], trained_folder: Path, training_options: SparsifyOptions
) -> None:
    before = (calibrated[0] / "config.json").read_bytes()
    done = run_command("calibrate", trained_folder, calibrated[0], "--text", training_options.eval_text[0], "-q")
    assert done.exit_code == 1
    assert "already exists" in done.stderr
    assert "--overwrite" in done.stderr
    assert (calibrated[0] / "config.json").read_bytes() == before


def test_calibration_needs_a_relu(silu_folder: Path, training_options: SparsifyOptions) -> None:
    text = ["--text", training_options.eval_text[0], "--context", 32]
    done = run_command("calibrate", silu_folder, *text, "-q")
    assert done.exit_code == 1
    assert "expected ReLU or FATReLU, got SiLU" in done.stderr
    assert "hint: train the model with prosparse sparsify first" in done.stderr


@pytest.mark.parametrize(
    ("config", "options"),
    [({"hidden_act_param": 0.007}, {}), ({"hidden_act": "relu"}, {}), ({}, {"threshold": 0.007})],
    ids=["other threshold", "relu", "overridden"],
)
def test_a_search_for_other_thresholds_is_ignored(
    config: dict[str, Any], options: dict[str, Any], calibrated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(calibrated[0], tmp_path / "model"))
    assert load_checkpoint(folder, in_files=True).calibration is not None
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    assert load_checkpoint(folder, in_files=True, **options).calibration is None


@pytest.mark.parametrize(("content", "got"), [("{", "expected JSON"), ('{"format": 1}', "expected an object with")])
def test_a_damaged_file_is_one_line(content: str, got: str, trained_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")))
    config = json.loads((folder / "config.json").read_text())
    (folder / CALIBRATION_FILE).write_text(content)
    assert load_checkpoint(folder).calibration is None  # a ReLU model does not need it
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "fatrelu", "hidden_act_param": 0.01}))
    with pytest.raises(ProSparseError, match=got) as caught:
        export_model(folder, tmp_path / "out" / "m.onnx")
    assert "delete the file" in str(caught.value.hint)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
