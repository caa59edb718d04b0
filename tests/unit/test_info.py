"""`prosparse info` on an artifact: its manifest, whatever made it, and the state of its validation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.manifests import FULL, SMALL

from prosparse_export.artifact.manifest import FileRecord, Manifest, write_manifest
from prosparse_export.artifact.measured_records import ValidatedFiles
from prosparse_export.cli import main
from prosparse_export.runtime import operator_library

GRAPH, WEIGHTS = b"graph", b"weights"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(folder: Path, manifest: Manifest) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(GRAPH)
    path.with_name("m.onnx.data").write_bytes(WEIGHTS)
    write_manifest(folder, manifest)
    return path


def validated() -> Manifest:
    assert FULL.validation is not None
    files = ValidatedFiles(sha256(GRAPH), len(WEIGHTS), sha256(WEIGHTS))
    return replace(FULL, validation=replace(FULL.validation, artifact=files))


def info(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["info", *map(str, arguments)])


def test_an_optimized_file(tmp_path: Path) -> None:
    result = info(written(tmp_path, replace(SMALL, already_sparse={"i4": 2})))
    assert result.exit_code == 0, result.output
    assert "m.onnx: optimized from in.onnx, unchanged weights" in result.stdout
    assert "sparse FFNs: 0, not rewritten: 0" in result.stdout
    assert "already sparse in the source: 2 in i4" in result.stdout
    assert "validate" not in result.stdout  # that compares with a model folder


def test_every_section(tmp_path: Path) -> None:
    result = info(written(tmp_path, validated()))
    assert result.exit_code == 0, result.output
    for line in (
        "m.onnx: llama, i4 weights",
        "attention: GroupQueryAttention; onnxruntime >=1.20",
        "KV cache: i8, a scale per channel from 64 tokens of t",
        "sparse FFNs: 1, not rewritten: 1",
        "in i8: lm_head (1); other linear layers in i4",
        "rounding errors weighted by inputs: 64 tokens of t",
        "compensated rounding: 1 matrices",
        "most expensive in 4 bits: head 0.5 nats, in i8; q_proj 0.25 nats, in i4",
        "LOSSY: silu approximated, 50% of the neurons kept: perplexity 20 -> 25 (+25.00%)",
        "calibrated: 0.01 of each layer's energy dropped",
        "exported with: torch 2.9",
        "validation FAILED: 1 of 2 checks\n",
        "  failed: KL: measured 1; allowed 0",
        "  with library: perplexity inf (PyTorch 20), KL 0.1, top-1 50.00%",
        "  activation sparsity: 90.00%",
    ):
        assert line in result.stdout
    assert result.stderr == ""


def test_formats_of_ffns_that_differ(tmp_path: Path) -> None:
    ffns = [replace(FULL.ffns[0], op=f"SparseGatedFFN{name}") for name in ("NL4", "NL4I8", "NL4")]
    result = info(written(tmp_path, replace(FULL, ffns=tuple(ffns))))
    assert "sparse FFNs: 2 in nl4, 1 in nl4i8\n" in result.stdout


@pytest.mark.parametrize("changed", ["m.onnx", "m.onnx.data"])
def test_files_that_changed_after_validation(changed: str, tmp_path: Path) -> None:
    path = written(tmp_path, validated())
    (tmp_path / changed).write_bytes(b"other contents")
    assert "validate again" in info(path).stdout
    assert json.loads(info(path, "--json").stdout)["validation"]["current"] is False


def test_json_is_the_manifest(tmp_path: Path) -> None:
    result = info(written(tmp_path, validated()), "--json")
    values = json.loads(result.stdout)
    assert values["validation"].pop("current") is True
    assert values == validated().to_dict()
    assert result.stderr == ""


def test_verify_compares_hashes(tmp_path: Path) -> None:
    files = {name: FileRecord(len(data), sha256(data)) for name, data in (("m.onnx", GRAPH), ("m.onnx.data", WEIGHTS))}
    path = written(tmp_path, replace(validated(), files=files))
    result = info(path, "--verify", "--json")
    assert "verified: 2 files match prosparse.json" in result.stderr
    assert json.loads(result.stdout)["validation"]["current"] is True
    path.with_name("m.onnx.data").write_bytes(WEIGHTS[::-1])  # as long as before
    result = info(path, "--verify")
    assert result.exit_code == 1
    assert "error: artifact: " in result.stderr
    assert "expected SHA-256" in result.stderr
    assert "hint: " in result.stderr


def test_no_manifest_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(GRAPH)
    for arguments, message in (
        ((tmp_path / "m.onnx",), "expected a prosparse.json next to m.onnx"),
        ((tmp_path / "m.onnx", "--verify"), "expected a prosparse.json with the hash of m.onnx"),
        ((tmp_path / "n.onnx",), "no such file"),
        ((tmp_path,), "expected an .onnx file, got a folder"),
    ):
        result = info(*arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "hint: " in result.stderr
        assert result.stdout == ""
    (tmp_path / "m.onnx.data").write_bytes(WEIGHTS)
    (tmp_path / "README.md").write_text("text")
    for name, message, hint in (
        ("README.md", "not an ONNX file", "pass an .onnx file"),
        ("m.onnx.data", "expected an .onnx file, got its weights", f"pass the graph: {tmp_path / 'm.onnx'}"),
    ):
        for options in ((), ("--verify",)):
            result = info(tmp_path / name, *options)
            assert result.exit_code == 1
            assert message in result.stderr
            assert f"hint: {hint}" in result.stderr
    assert "--verify requires ONNX_FILE" in info("--verify").output


def test_isa_that_cannot_run_has_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot = replace(operator_library.library_info(), isa_used=None, error="PROSPARSE_ISA=x cannot run here")
    monkeypatch.setattr(operator_library, "library_info", lambda: cannot)
    result = info()
    assert result.exit_code == 0
    assert "ISA used: none: PROSPARSE_ISA=x cannot run here" in result.stdout
    assert "hint: unset PROSPARSE_ISA" in result.stderr
