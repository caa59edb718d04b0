"""benchmarks/measurements.py and the files that it keeps."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import measurements
    import tables
finally:
    sys.path.remove(str(BENCHMARKS))

MACHINES = [path.stem for path in measurements.RESULTS.glob("*.json")]
RUN = {"model": "tinyllama", "weights": "f32", "threads": 2, "tokens": 1, "sparsity": 0.5, "engine": "ours"}


@pytest.mark.parametrize("machine", MACHINES)
def test_results_are_complete(machine: str) -> None:
    results = measurements.read(machine)
    assert results["machine"]["id"] == machine
    for session in results["sessions"]:
        assert {"suite", "command", "date", "runs"} <= session.keys()
        assert session["runs"]
        for run in session["runs"]:
            assert {"model", "weights", "threads", "engine"} <= run.keys()
            ratio = run.get("ratio", {"median": 1.0})
            assert ratio.get("q1", 0.0) <= ratio["median"] <= ratio.get("q3", float("inf")), (session["command"], run)


def test_a_new_session_replaces_its_command_and_comes_first(tmp_path: Path) -> None:
    shutil.copy(measurements.RESULTS / "epyc-zen3.json", tmp_path)
    before = measurements.read("epyc-zen3", tmp_path)["sessions"]
    session = {key: before[-1][key] for key in ("suite", "command")} | {"date": "2027-01-01", "runs": [RUN]}
    measurements.add_session("epyc-zen3", session, tmp_path)
    after = measurements.read("epyc-zen3", tmp_path)["sessions"]
    assert after[0]["runs"] == [RUN]
    assert after[0]["versions"]["onnxruntime"]
    assert after[1:] == before[:-1]


def test_another_schema_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(ValueError, match="expected schema 1, got 2"):
        measurements.read("m", tmp_path)


def test_the_newest_measurement_of_a_workload_counts() -> None:
    sessions = [
        {"suite": "ffn", "command": command, "date": "2027-01-01", "runs": [RUN | {"milliseconds": milliseconds}]}
        for command, milliseconds in (("new", 1.0), ("old", 2.0))
    ]
    (row,) = measurements.workloads({"sessions": sessions}, ("ffn",))
    assert row.engines["ours"]["milliseconds"] == 1.0
    assert row.commands == ["new"]


def test_a_slower_result_is_bold() -> None:
    text = tables.render("summary", "xeon-amx")
    assert "| TinyLlama, i4, prefill of 512 |" in text
    assert "| TinyLlama, i4 at level 4, prefill of 512 |" in text
    assert "**0." in text
    assert len(text.splitlines()) == 2 + 14
