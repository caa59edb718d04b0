"""An artifact appears whole or not at all, and what was there before survives a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.artifact import artifact_folder

OLD = {"m.onnx": "old graph", "m.onnx.data": "old weights", "config.json": "old config"}


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_overwrite_leaves_the_old_artifact(
    at: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    fill(folder, OLD)
    move, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at + 1:
            raise error
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with (
        pytest.raises((KeyboardInterrupt, ProSparseError)),
        artifact_folder(folder / "m.onnx", overwrite=True) as staging,
    ):
        fill(staging, {name: "new" for name in OLD})
    assert len(calls) > at
    assert contents(folder) == OLD


def test_an_overwrite_replaces_all(tmp_path: Path) -> None:
    fill(tmp_path, OLD)
    with artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging:
        fill(staging, {"m.onnx": "new", "m.onnx.data": "new", "extra": "new"})
    assert contents(tmp_path) == {"m.onnx": "new", "m.onnx.data": "new", "extra": "new", "config.json": "old config"}


def test_refuses_a_folder_as_output(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with (
        pytest.raises(ProSparseError, match="expected a file name, got a folder"),
        artifact_folder(tmp_path / "m.onnx", overwrite=True),
    ):
        pass
