"""An artifact appears whole or not at all, and what was there before survives a failure."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.artifact.manifest import FileRecord, Manifest, OnnxFileSource
from prosparse_export.artifact.writer import artifact_folder

OLD = {"m.onnx": "old graph", "m.onnx.data": "old weights", "config.json": "old config", "lib/a/ops.so": "old code"}


KEPT = {name: OLD[name] for name in ("config.json", "lib/a/ops.so")}


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def manifest_of(files: dict[str, FileRecord]) -> str:
    source = OnnxFileSource("in.onnx", "", "")
    return json.dumps(Manifest(source=source, versions={}, opset_imports={"": 20}, files=files).to_dict())


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def interrupt_move(monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> list[Path]:
    """Let move number ``at`` raise; return the targets of all moves, as they come."""
    move, calls = os.replace, list[Path]()

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at + 1:
            raise error
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    return calls


@pytest.mark.parametrize("at", range(2 * len(OLD)))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_overwrite_leaves_the_old_artifact(
    at: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    fill(folder, OLD)
    calls = interrupt_move(monkeypatch, at, error)
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
    assert contents(tmp_path) == {"m.onnx": "new", "m.onnx.data": "new", "extra": "new", **KEPT}


WITH_LIBRARIES = {
    **OLD,
    "prosparse.json": json.dumps(
        {"files": {"m.onnx": {}}, "libraries": {"linux-x86_64": {}, "macos-arm64": {}, "../x": {}}}
    ),
    "lib/linux-x86_64/libprosparse_ops.so": "old",
    "lib/macos-arm64/libprosparse_ops.dylib": "old",
    "lib/macos-arm64/notes.txt": "the user's",
}
NEW = {"m.onnx": "new", "m.onnx.data": "new", "prosparse.json": "{}"}


def test_an_overwrite_removes_libraries_of_the_old_artifact_only(tmp_path: Path) -> None:
    fill(tmp_path, WITH_LIBRARIES)
    with artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging:
        fill(staging, NEW)
    assert contents(tmp_path) == {**KEPT, **NEW, "lib/macos-arm64/notes.txt": "the user's"}
    assert not (tmp_path / "lib" / "linux-x86_64").exists()  # the empty folder too


@pytest.mark.parametrize("at", range(8))
def test_an_interrupted_overwrite_leaves_the_old_libraries(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, WITH_LIBRARIES)
    interrupt_move(monkeypatch, at, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging:
        fill(staging, NEW)
    assert contents(tmp_path) == WITH_LIBRARIES


def test_new_folders_disappear_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move = os.replace

    def fails_for_the_graph(source: Path, target: Path) -> None:
        if target == tmp_path / "m.onnx":
            raise OSError
        move(source, target)

    monkeypatch.setattr(os, "replace", fails_for_the_graph)
    with pytest.raises(ProSparseError), artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging:
        fill(staging, {"m.onnx": "new", "lib/a/ops.so": "new"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_libraries_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"lib": "a file"})
    with (
        pytest.raises(ProSparseError, match="lib: expected a folder for the operator libraries, got a file"),
        artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging,
    ):
        fill(staging, {"m.onnx": "new", "lib/a/ops.so": "new"})
    assert contents(tmp_path) == {"lib": "a file"}


def test_a_folder_is_not_an_output(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with (
        pytest.raises(ProSparseError, match="expected a file name, got a folder"),
        artifact_folder(tmp_path / "m.onnx", overwrite=True),
    ):
        pass


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_folder_of_another_artifact_is_an_error_before_any_work(overwrite: bool, tmp_path: Path) -> None:
    files = {name: FileRecord(1, "") for name in ("m.encoder.onnx", "m.onnx", "m.onnx.data")}
    before = {"m.onnx": "graph", "m.encoder.onnx": "graph", "prosparse.json": manifest_of(files)}
    fill(tmp_path, before)
    entered = False
    with (
        pytest.raises(ProSparseError, match=r"expected a folder without another artifact, got one with m\.") as error,
        artifact_folder(tmp_path / "n.onnx", overwrite=overwrite),
    ):
        entered = True
    assert not entered
    assert str(tmp_path / "n" / "n.onnx") in (error.value.hint or "")
    assert contents(tmp_path) == before
    with artifact_folder(tmp_path / "m.onnx", overwrite=True) as staging:  # its own, both graphs of it
        fill(staging, {"m.onnx": "new", "prosparse.json": "{}"})
    assert contents(tmp_path)["m.onnx"] == "new"


@pytest.mark.parametrize("change", [{"format": 1}, {"format": 99}, {"later": 3}, {"source": {}}])
def test_an_artifact_of_another_version_is_not_replaced(change: dict[str, object], tmp_path: Path) -> None:
    manifest = {**json.loads(manifest_of({"m.onnx": FileRecord(1, "")})), **change}
    before = {"m.onnx": "graph", "prosparse.json": json.dumps(manifest)}
    fill(tmp_path, before)
    with (
        pytest.raises(ProSparseError, match=r"expected a folder without another artifact, got one with m\.onnx"),
        artifact_folder(tmp_path / "n.onnx", overwrite=True),
    ):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("manifest", [manifest_of({"gone.onnx": FileRecord(1, "")}), '{"files": 3}', "{}", "damaged"])
def test_takes_a_folder_whose_artifact_is_gone(manifest: str, tmp_path: Path) -> None:
    fill(tmp_path, {"prosparse.json": manifest})
    with artifact_folder(tmp_path / "n.onnx", overwrite=True) as staging:
        fill(staging, {"n.onnx": "new"})
    assert contents(tmp_path)["n.onnx"] == "new"
