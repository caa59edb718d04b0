"""A threshold search, from ``prosparse calibrate`` through the export to the report's figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prosparse_export import ProSparseError, export_model
from prosparse_export.cli import main
from prosparse_export.report import ReportOptions, measure
from prosparse_export.report.charts import draw
from prosparse_export.report.page import render_page
from prosparse_export.text import default_text
from prosparse_models import load_checkpoint
from prosparse_models.loading.calibration_file import CALIBRATION_FILE

pytestmark = pytest.mark.integration


def run(*arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text(json.dumps({"text": default_text()[:2500]}) + "\n")
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["one threshold", "per layer"])
def calibrated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path, text: Path
) -> tuple[Path, dict[str, Any]]:
    """One written to a folder of its own, the other in place."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    arguments: list[object] = [demo_folder, folder]
    if request.param:
        shutil.copytree(demo_folder, folder)
        arguments = [folder, "--in-place", "--per-layer"]
    result = json.loads(run("calibrate", *arguments, "--text", text, "--tokens", 256, "--context", 128, "--json", "-q"))
    return folder, result


def test_search_reaches_the_report(calibrated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = calibrated
    kept = json.loads((folder / CALIBRATION_FILE).read_text())
    per_layer = kept["search_parameter"] == "energy dropped"
    assert per_layer or kept["search_parameter"] == "threshold"
    assert kept["hidden_act_param"] == json.loads((folder / "config.json").read_text())["hidden_act_param"]
    assert kept["chosen"] in kept["trials"]
    assert kept["chosen"]["value"] == result["chosen"]["value"]
    assert kept["perplexity_limit"] == result["perplexity_limit"]
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]  # nothing half written
    points = [(t["value"], t["sparsity"], t["perplexity"]) for t in result["trials"]]
    assert len(points) > 5

    output = tmp_path / "m.onnx"
    assert run("export", folder, output, "-q").startswith(str(output))
    manifest = json.loads((tmp_path / "prosparse.json").read_text())
    recorded = manifest["calibration"]
    assert [(p["value"], p["sparsity"], p["perplexity"]) for p in recorded["trials"]] == points
    (line,) = [line for line in run("info", output).splitlines() if line.startswith("calibrated: ")]
    assert f"perplexity {points[0][2]:.4g} -> {result['chosen']['perplexity']:.4g} (budget +1.00%)" in line
    assert ("of each layer's energy dropped" in line) == per_layer

    report = measure(output, [("t", default_text()[:2000])], ReportOptions(64, 64, speed=False))
    axes, other = draw("calibration", report).axes
    drawn = (axes.lines[0].get_xdata(), axes.lines[0].get_ydata(), other.lines[0].get_ydata())
    assert list(zip(*drawn, strict=True)) == [(value, 100 * sparsity, p) for value, sparsity, p in points]
    assert axes.get_xlabel().startswith("energy dropped" if per_layer else "threshold")
    page = render_page(report)
    assert 'id="figure-calibration"' in page
    chosen = result["chosen"]
    assert f"sparsity {100 * chosen['sparsity']:.2f} %, perplexity {chosen['perplexity']:.4g}; its budget" in page


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
def test_a_damaged_file_is_one_line(content: str, got: str, demo_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / CALIBRATION_FILE).write_text(content)
    export_model(folder, tmp_path / "relu" / "m.onnx")  # a ReLU model has no use for it
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "fatrelu", "hidden_act_param": 0.01}))
    with pytest.raises(ProSparseError, match=got) as caught:
        export_model(folder, tmp_path / "out" / "m.onnx")
    assert "delete the file" in str(caught.value.hint)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
