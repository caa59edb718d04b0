"""`prosparse bench --serve` on the demo model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import numpy as np
import pytest
from click.testing import CliRunner
from support.server import serving

from prosparse_export import ProSparseError
from prosparse_export.bench.serving import LoadOptions, run_load
from prosparse_export.cli import main

pytestmark = pytest.mark.integration


def test_a_load_in_json_and_as_a_chart(demo_artifact: Path, tmp_path: Path) -> None:
    chart = tmp_path / "load.png"
    options = ["--clients", "1", "--clients", "3", "--rate", "50", "--requests", "6", "--prompt", "20", "--answer", "8"]
    command = ["bench", str(demo_artifact), "--serve", "--threads", "1", "--json", "--plot", str(chart), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    points = json.loads(result.stdout)["points"]
    assert [(point["load"], point["value"]) for point in points] == [("clients", 1), ("clients", 3), ("requests/s", 50)]
    for point in points:
        assert (point["requests"], point["refused"]) == (6, 0)
        assert point["tokens_per_second"] > 0
        assert 0 < point["first_token"]["p50"] <= point["first_token"]["p95"] <= point["first_token"]["p99"]
        assert len(point["first_seconds"]) == 6
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_refused_requests_are_counted(demo_artifact: Path) -> None:
    with serving(demo_artifact, "--max-batch", 1, "--max-queue", 1) as server:
        options = LoadOptions(clients=(), rates=(1000.0,), requests=12, prompt=200, answer=60, spread=0.0)
        (point,) = run_load(f"{server.url}/v1", np.arange(10, 400), options).points
    assert point.refused > 0
    assert point.requests + point.refused == 12


def test_no_server() -> None:
    with pytest.raises(ProSparseError, match=r"serve: http://127\.0\.0\.1:9/v1: ") as caught:
        run_load("http://127.0.0.1:9/v1", np.arange(10), LoadOptions())
    assert "runs" in (caught.value.hint or "")


def test_each_load_has_prompts_of_its_own(demo_artifact: Path) -> None:
    with serving(demo_artifact, "--max-batch", 4) as server:
        options = LoadOptions(clients=(1, 2), requests=4, prompt=200, answer=4, spread=0.0)
        run_load(f"{server.url}/v1", np.arange(10, 2000), options)
        metrics = httpx2.get(f"{server.url}/metrics").text
    cached = float(re.findall(r"^prosparse_\w*cached\w* ([0-9.e+]+)$", metrics, re.MULTILINE)[0])
    assert cached < 64 * 4  # the first request of each load is the same; with equal prompts, all of the second's were


def test_lengths_beyond_the_context(demo_artifact: Path) -> None:
    with serving(demo_artifact, "--context", 64) as server:
        url = f"{server.url}/v1"
        (point,) = run_load(url, np.arange(10, 400), LoadOptions((2,), (), 8, 40, 20, spread=2.0)).points
        assert point.requests == 8
        with pytest.raises(ProSparseError, match="within 64 tokens, got medians of 60 and 20"):
            run_load(url, np.arange(10, 400), LoadOptions((1,), (), 2, 60, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients", "4"], "--clients requires --serve"),
        (["--max-batch", "4"], "--max-batch requires --serve"),
        (["--serve", "--rounds", "5"], "--rounds has no effect with --serve"),
        (["--serve", "--no-dense"], "--dense has no effect with --serve"),
    ],
)
def test_options_of_the_other_measurement(demo_artifact: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["bench", str(demo_artifact), *options])
    assert (result.exit_code, message in result.stderr) == (2, True)
