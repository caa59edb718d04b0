"""Finding, querying and registering the operator library."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
from support.manifests import SMALL

from prosparse_export.artifact.manifest import read_manifest, write_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime import operator_library, session
from prosparse_export.runtime.operator_library import (
    check_library,
    check_operators,
    disabled_optimizers,
    library_info,
    library_path,
    register,
    usable_library,
)


def test_the_environment_variable_names_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.so"
    monkeypatch.setenv("PROSPARSE_OPS_LIBRARY", str(file))
    with pytest.raises(ProSparseError, match=r"PROSPARSE_OPS_LIBRARY: .*other\.so: no such file"):
        library_path()
    file.write_bytes(b"no library")
    assert library_path() == file
    with pytest.raises(ProSparseError, match=r"operator library: .*other\.so: cannot be loaded: "):
        library_info()
    with pytest.raises(ProSparseError, match=r"operator library: .*other\.so: ") as caught:
        register(onnxruntime.SessionOptions())
    assert caught.value.hint == "`prosparse info` shows the library and the versions"


def test_a_tree_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROSPARSE_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(operator_library, "__file__", str(tmp_path / "runtime" / "operator_library.py"))
    monkeypatch.setattr(
        operator_library, "distribution", lambda _: SimpleNamespace(locate_file=lambda name: tmp_path / "site" / name)
    )
    monkeypatch.setattr(operator_library, "this_platform", lambda: "linux-aarch64")
    with pytest.raises(ProSparseError, match=r"operator library: .*site/.*_ops: no linux-aarch64/libprosparse_ops\.so"):
        library_path()
    for folder in (tmp_path / "site" / "prosparse_export" / "_ops", tmp_path / "_ops"):  # the second is preferred
        library = folder / "linux-aarch64" / "libprosparse_ops.so"
        library.parent.mkdir(parents=True)
        library.touch()
        assert library_path() == library


def test_the_variant_in_use_is_supported() -> None:
    info = library_info()
    assert info.version
    assert set(info.isa_supported) <= set(info.isa_compiled)
    assert "scalar" in info.isa_supported
    assert info.isa_used in (*info.isa_supported, None)
    assert (info.isa_used is None) == (info.error is not None)


def test_a_variant_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(library_info(), isa_used="scalar", error=None)
    monkeypatch.setattr(operator_library, "library_info", lambda: info)
    check_library()
    bad = replace(info, isa_used=None, error="PROSPARSE_ISA=x cannot run here")
    monkeypatch.setattr(operator_library, "library_info", lambda: bad)
    with pytest.raises(ProSparseError, match="PROSPARSE_ISA=x cannot run here") as caught:
        check_library()
    assert "unset PROSPARSE_ISA" in str(caught.value.hint)


@pytest.fixture
def older_library(monkeypatch: pytest.MonkeyPatch) -> None:
    older = replace(library_info(), version="0.0.9", operators=("SparseGatedFFNF32",))
    monkeypatch.setattr(operator_library, "library_info", lambda: older)
    monkeypatch.delenv("PROSPARSE_OPS_LIBRARY", raising=False)
    monkeypatch.delenv("PROSPARSE_ISA", raising=False)


@pytest.fixture
def newer_artifact(tmp_path: Path) -> Path:
    manifest = replace(SMALL, operators=("LinearI4", "SparseGatedFFNF32"), versions={"prosparse-export": "0.2.0"})
    write_manifest(tmp_path, manifest)
    return tmp_path / "m.onnx"


@pytest.mark.usefixtures("older_library")
def test_a_library_that_lacks_an_operator(newer_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rf".*: expected the operators of {newer_artifact}, got version 0\.0\.9 without LinearI4$"
    with pytest.raises(ProSparseError, match=expected) as caught:
        check_operators(newer_artifact, read_manifest(newer_artifact))
    assert "install prosparse-export 0.2.0 or newer" in str(caught.value.hint)
    assert re.match(expected, usable_library(newer_artifact, required=False) or "")  # then it runs densely
    with pytest.raises(ProSparseError, match=expected):
        usable_library(newer_artifact, required=True)
    monkeypatch.setenv("PROSPARSE_ISA", "scalar")
    with pytest.raises(ProSparseError, match=expected):
        usable_library(newer_artifact, required=False)


@pytest.mark.usefixtures("older_library")
def test_a_session_refuses_it(newer_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer_artifact.write_bytes(b"")
    monkeypatch.setattr(session, "check_files", lambda *_, **__: None)
    with pytest.raises(ProSparseError, match=r"without LinearI4$"):
        session.open_session(newer_artifact)


@pytest.mark.usefixtures("older_library")
def test_operators_that_an_older_library_knows(newer_artifact: Path) -> None:
    check_operators(newer_artifact, None)
    check_operators(newer_artifact, SMALL)
    check_operators(newer_artifact, replace(SMALL, operators=("SparseGatedFFNF32",)))


def test_registering_twice_has_no_effect() -> None:
    options = onnxruntime.SessionOptions()
    register(options)
    register(options)
    graph = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 20]> g (float[1] x) => (y) { y = Neg (x) }')
    onnxruntime.InferenceSession(graph.SerializeToString(), options)  # fails if a domain was registered twice


def manifest(ffns: str, linears: str, **exceptions: str) -> SimpleNamespace:
    return SimpleNamespace(weight_format=ffns, linears=SimpleNamespace(weight_format=linears, exceptions=exceptions))


def test_large_narrow_weights_are_not_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_library, "FOLDED_BYTES", 3)
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"

    def disabled(ffns: str = "i4", linears: str = "i8", *, library: bool = False) -> list[str]:
        return disabled_optimizers(path, manifest(ffns, linears), library=library)  # type: ignore[arg-type]

    assert disabled() == []  # no data file
    data.write_bytes(b"123")
    assert disabled() == []
    data.write_bytes(b"1234")
    assert disabled() == ["ConstantFolding"]
    assert disabled("f32", "i8") == ["ConstantFolding"]
    assert disabled("f32", "f32") == []
    mixed = manifest("f32", "f32", lm_head="i8")
    assert disabled_optimizers(path, mixed, library=False) == ["ConstantFolding"]  # type: ignore[arg-type]
    assert disabled(library=True) == []
    assert disabled_optimizers(path, None, library=False) == ["ConstantFolding"]
