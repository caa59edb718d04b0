"""Manifests: one with every section, one with none."""

from __future__ import annotations

import math

from prosparse_export.artifact.manifest import (
    GROUP_QUERY_ATTENTION,
    FfnRecord,
    FileRecord,
    LibraryRecord,
    LinearRecord,
    Manifest,
    ModelFolderSource,
    OnnxFileSource,
    OverrideRecord,
)
from prosparse_export.artifact.measured_records import (
    ApproximationRecord,
    FailedCheck,
    LayerSpeedup,
    OutputCheck,
    PartCost,
    PredictedSpeedup,
    QualityRecord,
    SparsityRecord,
    ThresholdSearch,
    ThresholdTrial,
    ValidatedFiles,
    ValidationRecord,
    WeightsRecord,
)
from prosparse_export.artifact.rounding_records import FormatCost, KvCacheRecord, RoundingRecord

SPARSE = FfnRecord(0, "model.layers.0.mlp", "SparseGatedFFNI4", "fatrelu", 0.01, 64, 256, "", ("g", "u", "d"), "n", "x")
DENSE = FfnRecord(1, "model.layers.1.mlp", "", "", 0.0, 64, 256, "gate_proj has a bias")
SMALL = Manifest(OnnxFileSource("in.onnx", "00", "other exporter"), {"onnx": "1.20"}, {"": 20})
TRIAL = ThresholdTrial(0.01, 0.9, math.inf, (0.01,), within=False)
FULL = Manifest(
    source=ModelFolderSource("float16", {"config.json": "00"}, "llama"),
    versions={"torch": "2.9"},
    opset_imports={"": 20, "com.prosparse": 1},
    operators=("LinearI4", "SparseGatedFFNI4"),
    weight_format="i4",
    ffns=(SPARSE, DENSE),
    decomposed=True,
    onnxruntime=">=1.20",
    attention=GROUP_QUERY_ATTENTION,
    attention_not_fused=("layer 1: no RoPE",),
    already_sparse={"f32": 2},
    linears=LinearRecord("i4", ("lm_head", "q"), {"lm_head": "i8"}),
    rounding=RoundingRecord(
        {"t": "00"}, 64, ("q",), (FormatCost("q_proj", 0.25, 10, "i4"), FormatCost("head", 0.5, 9, "i8"))
    ),
    overrides={"activation": OverrideRecord("relu", "silu"), "threshold": OverrideRecord(0.03)},
    kv_cache=KvCacheRecord("i8", "channel", 2, {"t": "00"}, 64),
    encoder="m.encoder.onnx",
    calibration=ThresholdSearch("energy dropped", 0.01, 41.5, 100, (0.01,), TRIAL, (TRIAL,)),
    approximation=ApproximationRecord("silu", 0.5, (0.1,), {"t": "00"}, 64, 64, 20.0, 25.0, 0.5, (0.5,)),
    predicted_speedup=PredictedSpeedup(
        {"t": "00"}, 64, 20.0, (LayerSpeedup(0, 2.0, 0.9), LayerSpeedup(1, 1.0)), 1.5, 0.01, 0.7, 2, 1e10
    ),
    output_check=OutputCheck(True, None, 1e-6, 4.0, 1e-4),
    files={"m.onnx": FileRecord(3, "00")},
    libraries={"linux-x86_64": LibraryRecord("lib/linux-x86_64/libprosparse_ops.so", "1.0", 3, "00")},
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
        quantization_costs=(PartCost("", 0.2, "i4"), PartCost("lm_head", 0.1, "i4")),
    ),
)
