"""Threads by default: physical cores, the process's own, within the quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prosparse_export.runtime.threads import default_threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight processors on four cores; the process may use six of them, on three cores."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, 3), ("max 100000", 3), ("150000 100000", 2), ("5000 100000", 1), ("900000 100000", 3)]
)
def test_default(quota: str | None, threads: int, machine: Path) -> None:
    file = machine / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    assert default_threads(machine, file) == threads


def test_without_a_description_every_processor_counts(machine: Path) -> None:
    assert default_threads(machine / "nowhere", machine / "none") == 6
