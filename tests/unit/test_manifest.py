"""prosparse.json: read back as it was written, and rejected with a hint if it is anything else."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
from support.manifests import DENSE, FULL, SMALL, SPARSE

from prosparse_export import ProSparseError
from prosparse_export.artifact import manifest, measured_records
from prosparse_export.artifact.json_records import from_json, to_json
from prosparse_export.artifact.manifest import Manifest, read_manifest, require_manifest, write_manifest
from prosparse_export.artifact.rounding_records import FormatCost


@pytest.mark.parametrize("written", [SMALL, FULL], ids=["small", "full"])
def test_round_trip(written: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, written)
    assert require_manifest(tmp_path / "m.onnx") == written
    text = (tmp_path / "prosparse.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert text.startswith('{\n  "format": 2,')


def without_optional_values(value: Any) -> Any:
    """``value`` with every field that may be None set to None, in the records that it holds too."""
    if isinstance(value, tuple):
        return tuple(map(without_optional_values, value))
    if isinstance(value, dict):
        return {key: without_optional_values(entry) for key, entry in value.items()}
    if not is_dataclass(value):
        return value
    hints = get_type_hints(type(value))
    optional = {field.name for field in fields(value) if type(None) in get_args(hints[field.name])}
    entries = {field.name: without_optional_values(getattr(value, field.name)) for field in fields(value)}
    return replace(value, **{name: None if name in optional else entry for name, entry in entries.items()})  # type: ignore[type-var]


def records_in(value: Any) -> list[Any]:
    """``value`` and the records inside it."""
    if isinstance(value, (tuple, dict)):
        entries = value.values() if isinstance(value, dict) else value
        return [record for entry in entries for record in records_in(entry)]
    if not is_dataclass(value):
        return []
    return [value, *(record for field in fields(value) for record in records_in(getattr(value, field.name)))]


def record_types(module: ModuleType) -> set[type]:
    return {kind for kind in vars(module).values() if isinstance(kind, type) and is_dataclass(kind)}


def test_every_record_survives_without_its_optional_values() -> None:
    records = [*records_in(FULL), *records_in(SMALL)]
    assert {type(record) for record in records} == record_types(manifest) | record_types(measured_records) | {
        FormatCost
    }
    for record in records:
        bare = without_optional_values(record)
        assert from_json(type(bare), to_json(bare)) == bare


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
        ("[]", "expected format 2, got None"),
        ("{}", "expected format 2, got None"),
        ('{"format": 1, "ffn": {"layers": []}}', "expected format 2, got 1"),
        ('{"format": 3}', "expected format 2, got 3"),
        ('{"format": "2"}', "expected format 2, got '2'"),
        ('{"format": 2}', "source: missing"),
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
