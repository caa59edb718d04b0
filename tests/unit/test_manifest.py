"""prosparse.json: read back as it was written, and rejected with a hint if it is anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.manifests import DENSE, FULL, SMALL, SPARSE

from prosparse_export import ProSparseError
from prosparse_export.artifact.manifest import Manifest, read_manifest, require_manifest, write_manifest


@pytest.mark.parametrize("manifest", [SMALL, FULL], ids=["small", "full"])
def test_round_trip(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest)
    assert require_manifest(tmp_path / "m.onnx") == manifest
    text = (tmp_path / "prosparse.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert text.startswith('{\n  "format": 1,')


def test_counts_ffns() -> None:
    assert (FULL.rewritten, FULL.not_rewritten) == ((SPARSE,), (DENSE,))
    assert FULL.fused_attention
    assert not SMALL.fused_attention
    assert FULL.approximation is not None
    assert FULL.approximation.perplexity_increase == 0.25


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "m.onnx") is None
    with pytest.raises(ProSparseError, match=r"expected a prosparse\.json next to m\.onnx") as error:
        require_manifest(tmp_path / "m.onnx")
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, got"),
        ("[]", "expected format 1, got None"),
        ("{}", "expected format 1, got None"),
        ('{"format": 2}', "expected format 1, got 2"),
        ('{"format": "1"}', "expected format 1, got '1'"),
        ('{"format": 1}', "source: missing"),
        (json.dumps({**SMALL.to_dict(), "ffn": {}}), "ffn: unknown key"),
        (
            json.dumps({**SMALL.to_dict(), "files": {"m.onnx": {"bytes": "3", "sha256": ""}}}),
            r"files\.m\.onnx\.bytes: ",
        ),
        (json.dumps({**SMALL.to_dict(), "source": {"kind": "elsewhere"}}), r"source\.kind: expected"),
    ],
)
def test_damaged_or_of_another_version(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "prosparse.json").write_text(text)
    with pytest.raises(ProSparseError, match=message) as error:
        read_manifest(tmp_path / "m.onnx")
    assert str(tmp_path / "prosparse.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.hint
