"""Missing, truncated and changed files of an artifact are found, each with a hint."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import SMALL

from prosparse_export import ProSparseError
from prosparse_export.artifact import integrity
from prosparse_export.artifact.integrity import check_files, missing_model, sha256_file
from prosparse_export.artifact.manifest import FileRecord, write_manifest

CONTENTS = {"m.onnx": b"graph", "m.onnx.data": b"weights"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name, data in CONTENTS.items():
        (tmp_path / name).write_bytes(data)
    files = {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items()}
    write_manifest(tmp_path, replace(SMALL, files=files))
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("verify", [False, True])
def test_whole_artifact(verify: bool, path: Path) -> None:
    stages: list[str] = []
    assert check_files(path, verify=verify, progress=lambda stage, *_: stages.append(stage)) == 2
    assert stages == (["read m.onnx", "read m.onnx.data"] if verify else [])


@pytest.mark.parametrize(
    ("data", "verify", "message"),
    [
        (None, False, r"m\.onnx\.data: no such file \(expected 7 bytes of weights\)"),
        (b"weight", False, r"m\.onnx\.data: expected 7 bytes, got 6"),
        (b"Weights", True, r"m\.onnx\.data: expected SHA-256 [0-9a-f]{12}, got [0-9a-f]{12}"),
    ],
)
def test_other_weights(data: bytes | None, verify: bool, message: str, path: Path) -> None:
    weights = path.with_name("m.onnx.data")
    weights.unlink()
    if data is not None:
        weights.write_bytes(data)
    with pytest.raises(ProSparseError, match=message) as error:
        check_files(path, verify=verify)
    assert error.value.hint


def test_an_edited_graph_is_found_by_its_hash_only(path: Path) -> None:
    path.write_bytes(b"an edited graph")
    assert check_files(path) == 2
    with pytest.raises(ProSparseError, match=r"m\.onnx: expected SHA-256"):
        check_files(path, verify=True)


def test_a_graph_without_a_record(path: Path) -> None:
    other = path.with_name("other.onnx")
    other.write_bytes(b"graph")
    assert check_files(other) == 0
    with pytest.raises(ProSparseError, match=r"expected a prosparse\.json with the hash of other\.onnx"):
        check_files(other, verify=True)


def test_hash_of_a_file_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_CHUNK", 1000)
    data = bytes(range(256)) * 10
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_hash_can_be_given_up_between_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_CHUNK", 1000)
    (tmp_path / "x").write_bytes(bytes(10_000))
    answers = iter([False, False, True])
    assert sha256_file(tmp_path / "x", lambda: next(answers)) == hashlib.sha256(bytes(2000)).hexdigest()


def test_hints_at_what_a_path_is(path: Path, tmp_path: Path) -> None:
    assert "prosparse-export MODEL_DIR" in (missing_model(tmp_path / "n.onnx").hint or "")
    assert str(path) in (missing_model(tmp_path).hint or "")
    folder = tmp_path / "model"
    folder.mkdir()
    assert missing_model(folder).hint == "check the path"
    (folder / "config.json").write_text("{}")
    assert f"prosparse-export {folder} OUT.onnx" in (missing_model(folder).hint or "")
