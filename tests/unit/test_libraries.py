"""Operator libraries in an artifact: their version read from the file, missing and damaged ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import SMALL

from prosparse_export.artifact.libraries import (
    check_libraries,
    check_whole,
    library_in_artifact,
    library_problems,
    library_record,
    library_version,
)
from prosparse_export.artifact.manifest import read_manifest, write_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import library_path

BYTES = b"\x7fELF\0prosparse_ops version 1.2.3rc1\0more"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    libraries = {}
    for platform in ("linux-x86_64", "windows-arm64"):
        file = tmp_path / library_in_artifact(platform)
        file.parent.mkdir(parents=True)
        file.write_bytes(BYTES + platform.encode())
        libraries[platform] = library_record(platform, file, library_version(file))
    write_manifest(tmp_path, replace(SMALL, libraries=libraries))
    return tmp_path / "m.onnx"


def test_records_are_kept_in_the_manifest(graph: Path) -> None:
    manifest = read_manifest(graph)
    assert manifest is not None
    record = manifest.libraries["windows-arm64"]
    assert (record.file, record.version) == ("lib/windows-arm64/prosparse_ops.dll", "1.2.3rc1")
    assert record.bytes == (graph.parent / record.file).stat().st_size
    assert check_libraries(graph) == 2


def test_a_copy_may_leave_platforms_out_but_not_replace_them(graph: Path) -> None:
    manifest = read_manifest(graph)
    assert manifest is not None
    (graph.parent / "lib/windows-arm64/prosparse_ops.dll").unlink()
    assert check_libraries(graph) == 1
    (graph.parent / "lib/linux-x86_64/libprosparse_ops.so").write_bytes(BYTES)
    problems = dict(library_problems(graph.parent, manifest.libraries))
    assert problems == {"linux-x86_64": "damaged", "windows-arm64": "missing"}
    with pytest.raises(ProSparseError, match=r"artifact: .*libprosparse_ops\.so: expected SHA-256 \w{12}, got"):
        check_libraries(graph)


def test_another_file_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF nothing of ours")
    with pytest.raises(ProSparseError, match=r"expected the version of a com\.prosparse library in it, found none"):
        library_version(tmp_path / "x.so")


def test_a_library_that_was_cut_off(tmp_path: Path) -> None:
    library = Path(library_path())
    if library.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("only ELF libraries are checked: the other systems' loaders fail without a signal")
    check_whole(library)
    cut = tmp_path / "cut.so"
    cut.write_bytes(library.read_bytes()[:-1000])
    with pytest.raises(ProSparseError, match=r"cut\.so: expected at least [\d,]+ bytes, got [\d,]+"):
        check_whole(cut)
