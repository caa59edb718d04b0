"""Activity counts against PyTorch, and the page that shows them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from prosparse_export import ProSparseError
from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.artifact.measured_records import (
    FailedCheck,
    PartCost,
    QualityRecord,
    ThresholdSearch,
    ThresholdTrial,
    ValidatedFiles,
    ValidationRecord,
)
from prosparse_export.cli import main
from prosparse_export.report import Report, ReportOptions, measure, write_page, write_pngs
from prosparse_export.report.charts import CHARTS
from prosparse_export.report.page import render_page
from prosparse_export.text import default_text
from prosparse_models import load_checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def report(demo_artifact: Path) -> Report:
    text = default_text()
    return measure(demo_artifact, [("one <b>", text[:6000]), ("two", text[9000:])], ReportOptions(300, 64))


def test_activity_is_what_pytorch_counts(demo_folder: Path, demo_artifact: Path) -> None:
    ids = np.asarray(load_tokenizer(demo_folder)(default_text()[:3000])["input_ids"][:100], np.int64)
    activity = measure_activity(demo_artifact, [ids[:70], ids[70:]], context=64)
    model = load_checkpoint(demo_folder).model
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0] != 0))
    with torch.no_grad():
        for window in (ids[:64], ids[64:70], ids[70:]):
            model(input_ids=torch.from_numpy(window[None]))
    count = len(activity.layers)
    assert count == len(model.model.layers)
    assert activity.texts.tolist() == [0] * 70 + [1] * 30
    assert activity.positions.tolist() == [*range(64), *range(6), *range(30)]
    total = 0
    for i, layer in enumerate(activity.layers):
        windows = [w.numpy() for w in seen[i::count]]
        active = np.concatenate(windows)
        both = np.concatenate([np.append(-1, (w[1:] & w[:-1]).sum(-1)) for w in windows])
        # A pre-activation within rounding of zero may fall on either side: at most a few in a million.
        assert np.abs(layer.per_token - active.sum(-1)).sum() <= active.size * 1e-5
        assert np.abs(layer.per_neuron - active.sum(0)).sum() <= active.size * 1e-5
        assert np.abs(layer.shared - both).sum() <= active.size * 1e-5
        assert layer.sparsity == pytest.approx(1 - active.mean(), abs=1e-5)
        total += int(layer.per_token.sum())
    assert total > 1000


def test_report_adds_up(report: Report) -> None:
    assert report.tokens == 300
    for layer in report.layers:
        assert sum(layer.histogram) == pytest.approx(1)
        assert np.mean(layer.by_text) == pytest.approx(layer.sparsity)  # texts of the same length
        assert list(layer.activity) == sorted(layer.activity, reverse=True)
        assert layer.dead + layer.rare + layer.hot <= layer.d_ff
        assert layer.ceiling == pytest.approx(3 / (1 + 2 * (1 - layer.skipped)))
        assert layer.skipped == layer.sparsity
        assert layer.speed is not None
        assert 0 < layer.speed.ratio_low <= layer.speed.ratio <= layer.speed.ratio_high


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_page_needs_nothing_and_runs_nothing(report: Report) -> None:
    """No script, so no script error; no other file; ids that are one each; texts' names escaped."""
    page = render_page(report)
    parser = _Tags()
    parser.feed(page)
    assert not {"script", "iframe", "object", "embed", "link", "img"} & set(parser.tags)
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    links = [value or "" for name, value in parser.attributes if name in ("href", "xlink:href", "src")]
    assert all(link.startswith("#") for link in links)
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert "@import" not in page
    assert parser.tags.count("svg") == len(CHARTS) - 1  # nothing was calibrated
    assert "one &lt;b&gt;" in page
    assert "one <b>" not in page


def test_calibration_is_drawn_if_there_is_one(report: Report) -> None:
    trials = tuple(
        ThresholdTrial(q, 0.9 + q, p, (q,), p < 41.5) for q, p in ((0.0, 40.0), (0.01, 41.0), (0.02, math.inf))
    )
    search = ThresholdSearch("energy dropped", 0.01, 41.5, 100, 0.01, chosen=trials[1], trials=trials)
    page = render_page(replace(report, calibration=search))
    assert 'id="figure-calibration"' in page
    assert "energy dropped 0.01, sparsity 91.00%, perplexity 41 within a budget of 41.5" in page
    assert (
        ">fraction of each layer's energy dropped</text>" in page
    )  # text, not outlines: it can be searched and read aloud


def test_pages_of_many_layers_and_of_a_validated_model(report: Report, tmp_path: Path) -> None:
    quality = QualityRecord("with library", 5, math.inf, 3.25, math.nan, math.nan, 0.5, 0.5, math.nan)
    validation = ValidationRecord(
        passed=False,
        checks=3,
        failed=(FailedCheck("x", "1", "0"),),
        bound=1.0,
        exact_against="PyTorch",
        tokens=5,
        texts={"t": ""},
        artifact=ValidatedFiles("00"),
        versions={},
        quality=(quality,),
        lossy=True,
        greedy_match=(),
        greedy_tokens=0,
        quantization_costs=(PartCost("", 0.25, "i4/i8"), PartCost("model.layers.7.mlp", 0.0625, "i4")),
    )
    manifest = replace(report.manifest, validation=validation)
    layers = tuple(replace(report.layers[i % 5], speed=None) for i in range(60))
    write_page(replace(report, layers=layers, manifest=manifest), tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert 'id="figure-speed"' not in page
    assert "FAILED: 1 of 3 checks" in page
    assert "i4/i8 costs 2.50e-01 nats per token" in page
    assert "<td>model.layers.7.mlp</td><td>i4</td><td>6.25e-02</td>" in page
    assert len(write_pngs(report, tmp_path)) == len(CHARTS) - 1
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.glob("*.png"))


@pytest.mark.parametrize("variable", ["PROSPARSE_OPS_LIBRARY", "PROSPARSE_ISA"])
def test_no_speed_needs_no_operator_library(
    variable: str, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, options = [("text", default_text()[:3000])], ReportOptions(64, 64, speed=False)
    expected = measure(demo_artifact, texts, options)
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    found = measure(demo_artifact, texts, options)
    assert "ISA none" in found.machine
    assert found.sparsity == pytest.approx(expected.sparsity, abs=1e-4)  # rounding may cross zero
    with pytest.raises(ProSparseError, match=variable):
        measure(demo_artifact, texts, replace(options, speed=True))


def test_command(demo_artifact: Path, tmp_path: Path) -> None:
    """Once in a separate process, where nothing else may write to stdout, then in this one."""
    arguments = ["report", str(demo_artifact), "-q", "-o", str(tmp_path / "x.html"), "--max-tokens", "64", "--no-speed"]
    process = [sys.executable, "-c", "from prosparse_export.cli import main; main()"]

    def run(*more: str) -> Result:
        return CliRunner().invoke(main, [*arguments, *more])

    done = subprocess.run([*process, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 64
    assert done.stderr.strip() == str(tmp_path / "x.html")
    again = run()
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    png = tmp_path / "charts" / "texts.png"
    png.parent.mkdir()
    png.write_text("mine")
    in_the_way = run("-o", str(tmp_path / "y.html"), "--png", str(png.parent))
    assert in_the_way.exit_code == 1
    assert f"output: {png}: already exists" in in_the_way.stderr
    assert "hint: " in in_the_way.stderr
    assert (png.read_text(), len(list(png.parent.iterdir()))) == ("mine", 1)
    assert not list(tmp_path.glob("y.*"))
    replaced = run("--overwrite", "--png", str(png.parent))
    assert replaced.exit_code == 0, replaced.stderr
    assert replaced.stdout.strip() == str(tmp_path / "x.html")
    assert png.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty.txt").write_text("")
    bad = run("--overwrite", "--text", str(tmp_path / "empty.txt"))
    assert bad.exit_code == 1
    assert "expected text, got an empty file" in bad.stderr
