"""prosparse.json: read back as it was written, and rejected with a hint if it is anything else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.artifact.manifest import (
    FUSED,
    FfnRecord,
    FileRecord,
    LinearRecord,
    Manifest,
    ModelFolderSource,
    OnnxFileSource,
    OverrideRecord,
    read_manifest,
    require_manifest,
    write_manifest,
)
from prosparse_export.artifact.measured_records import (
    ApproximationRecord,
    FailedCheck,
    LayerSpeedup,
    OutputCheck,
    PredictedSpeedup,
    QualityRecord,
    SparsityRecord,
    ThresholdSearch,
    ThresholdTrial,
    ValidatedFiles,
    ValidationRecord,
    WeightsRecord,
)

SPARSE = FfnRecord(0, "model.layers.0.mlp", "SparseGatedFFNI4", "fatrelu", 0.01, 64, 256, "", ("g", "u", "d"), "n", "x")
DENSE = FfnRecord(1, "model.layers.1.mlp", "", "", 0.0, 64, 256, "gate_proj has a bias")
SMALL = Manifest(OnnxFileSource("in.onnx", "00", "other exporter"), {"onnx": "1.20"}, {"": 20})
TRIAL = ThresholdTrial(0.01, 0.9, math.inf, (0.01,), within=False)
FULL = Manifest(
    source=ModelFolderSource("llama", "float16", {"config.json": "00"}),
    versions={"torch": "2.9"},
    opset_imports={"": 20, "com.prosparse": 1},
    weight_format="i4",
    ffns=(SPARSE, DENSE),
    decomposed=True,
    onnxruntime=">=1.20",
    attention=FUSED,
    attention_not_fused=("layer 1: no RoPE",),
    already_sparse={"f32": 2},
    linears=LinearRecord("i8", ("lm_head",)),
    overrides={"activation": OverrideRecord("relu", "silu"), "threshold": OverrideRecord(0.03)},
    encoder="m.encoder.onnx",
    calibration=ThresholdSearch("energy dropped", 0.01, 41.5, 100, (0.01,), TRIAL, (TRIAL,)),
    approximation=ApproximationRecord("silu", 0.5, (0.1,), {"t": "00"}, 64, 64, 20.0, 25.0, 0.5, (0.5,)),
    predicted_speedup=PredictedSpeedup(
        {"t": "00"}, 64, 20.0, (LayerSpeedup(0, 2.0, 0.9), LayerSpeedup(1, 1.0)), 1.5, 0.01, 0.7, 2, 1e10
    ),
    output_check=OutputCheck(True, None, 1e-6, 4.0, 1e-4),
    files={"m.onnx": FileRecord(3, "00")},
    validation=ValidationRecord(
        passed=False,
        checks=2,
        failed=(FailedCheck("KL", "1", "0"),),
        bound=1e-3,
        exact_against="PyTorch",
        tokens=64,
        texts={"t": "00"},
        artifact=ValidatedFiles("00", 4, "00"),
        versions={"torch": "2.9"},
        quality=(QualityRecord("with library", 64, math.inf, 20.0, 0.1, 0.2, 0.5, 0.9, 1.0),),
        lossy=True,
        greedy_match=(4, 3),
        greedy_tokens=4,
        sparsity=SparsityRecord(0.9, (0.9,), 64, (0,)),
        stored_weights=WeightsRecord(5, 0.99, ("norm",)),
    ),
)


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
    with pytest.raises(ProSparseError, match=r"expected a prosparse\.json beside m\.onnx") as error:
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
