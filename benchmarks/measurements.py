"""The files of benchmarks/results: what was measured, by which command, on which machine.

A file holds one machine. A session is one run of one command; its engines ran interleaved in one process, so only
runs of the same session may be compared. `ratio` is the engine's time over ours, the median of paired rounds. Sessions
are stored newest first. A session without `versions` has those of the file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
KEY = ("model", "layers", "weights", "threads", "phase", "context", "tokens", "sparsity", "accuracy_level", "kv_cache")


@dataclass(frozen=True)
class Workload:
    """One row of a table: a workload with everything that was measured on it.

    Attributes:
        key: the values of `KEY`, where a run has them.
        engines: runs by engine; the newest session that has an engine wins.
        commands: the commands of those sessions.
    """

    key: Mapping[str, Any]
    engines: dict[str, Mapping[str, Any]]
    commands: list[str]


def read(machine: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Return the results of ``machine``.

    Raises:
        ValueError: the file is of another schema.
    """
    path = folder / f"{machine}.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result["schema"] != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {result['schema']}")
    return result


def workloads(
    results: Mapping[str, Any], suites: Iterable[str], wanted: Callable[[Mapping[str, Any]], bool] = lambda run: True
) -> list[Workload]:
    """Group the runs of ``suites`` by workload, in the order of the file."""
    found: dict[tuple[Any, ...], Workload] = {}
    for suite in suites:
        for session in results["sessions"]:
            if session["suite"] != suite:
                continue
            for run in filter(wanted, session["runs"]):
                key = {name: run[name] for name in KEY if name in run}
                row = found.setdefault(tuple(key.items()), Workload(key, {}, []))
                if run["engine"] not in row.engines:
                    row.engines[run["engine"]] = run
                    if session["command"] not in row.commands:
                        row.commands.append(session["command"])
    return list(found.values())


def sparsity_sweep(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the session that measured one FFN at the most sparsities, one token at a time."""

    def sparsities(session: Mapping[str, Any]) -> int:
        runs = [run for run in session["runs"] if run["tokens"] == 1 and run["engine"] == "dense baseline"]
        return len({run["sparsity"] for run in runs}) if len({run["model"] for run in runs}) == 1 else 0

    session: Mapping[str, Any] = max((s for s in results["sessions"] if s["suite"] == "ffn"), key=sparsities)
    return session


def add_session(machine: str, session: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Put ``session`` (suite, command, date, runs) into the file of ``machine``, in place of an earlier run of it."""
    path = folder / f"{machine}.json"
    results = read(machine, folder) if path.is_file() else _new(machine)
    same = (session["suite"], session["command"])
    kept = [old for old in results["sessions"] if (old["suite"], old["command"]) != same]
    write(path, results | {"sessions": [{"versions": _versions(), **session}, *kept]})


def _new(machine: str) -> dict[str, Any]:
    import common  # brings in onnxruntime, which the tables do not need

    return {"schema": SCHEMA, "machine": {"id": machine, **common.machine()}, "versions": {}, "sessions": []}


def _versions() -> dict[str, str]:
    """Return the versions of the engines that are installed."""
    found = {}
    for package in ("onnxruntime", "onnxruntime-genai", "llama-cpp-python", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write ``results`` with one run a line, so that a new measurement is a readable diff."""
    head = json.dumps({name: value for name, value in results.items() if name != "sessions"}, indent=1)
    sessions = []
    for session in results["sessions"]:
        fields = "".join(f"   {json.dumps(name)}: {json.dumps(session[name])},\n" for name in session if name != "runs")
        runs = ",\n".join(f"    {json.dumps(run)}" for run in session["runs"])
        sessions.append(f'  {{\n{fields}   "runs": [\n{runs}\n   ]\n  }}')
    path.write_text(f'{head[:-2]},\n "sessions": [\n' + ",\n".join(sessions) + "\n ]\n}\n", encoding="utf-8")
