"""prosparse.json: what an artifact is, how it was made, and what `prosparse validate` found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graph_passes.custom_ops import ATTENTION
from prosparse_export.artifact.json_records import from_json, to_json
from prosparse_export.artifact.measured_records import (
    ApproximationRecord,
    OutputCheck,
    PredictedSpeedup,
    ThresholdSearch,
    ValidationRecord,
)
from prosparse_export.artifact.rounding_records import KvCacheRecord, RoundingRecord
from prosparse_export.atomic_write import atomic_write
from prosparse_export.errors import ProSparseError

__all__ = [
    "GROUP_QUERY_ATTENTION",
    "MANIFEST",
    "MULTI_HEAD_ATTENTION",
    "FfnRecord",
    "FileRecord",
    "LibraryRecord",
    "LinearRecord",
    "Manifest",
    "ModelFolderSource",
    "OnnxFileSource",
    "OverrideRecord",
    "read_manifest",
    "require_manifest",
    "write_manifest",
]

MANIFEST = "prosparse.json"
GROUP_QUERY_ATTENTION = "GroupQueryAttention"
MULTI_HEAD_ATTENTION = "MultiHeadAttention"
_FORMAT = 2


@dataclass(frozen=True)
class FileRecord:
    """A file of the artifact.

    Attributes:
        bytes: its size.
        sha256: its hash, in hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class LibraryRecord:
    """The operator library of one platform.

    Attributes:
        file: its path below the artifact's folder, with forward slashes.
        version: its version.
        bytes: its size.
        sha256: its hash, in hexadecimal.
    """

    file: str
    version: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFolderSource:
    """The model folder that ``prosparse export`` read.

    Attributes:
        weight_dtype: float type of the checkpoint's weights.
        sha256: hash of config.json and of each weight file, by name.
        model_type: from config.json.
    """

    weight_dtype: str
    sha256: dict[str, str]
    model_type: str | None = None
    kind: Literal["model_folder"] = "model_folder"


@dataclass(frozen=True)
class OnnxFileSource:
    """The ONNX file that ``prosparse optimize`` read.

    Attributes:
        file: its name.
        sha256: hash of the graph, external data excluded.
        producer: producer_name of the graph.
    """

    file: str
    sha256: str
    producer: str
    kind: Literal["onnx_file"] = "onnx_file"


@dataclass(frozen=True)
class OverrideRecord:
    """A setting of config.json that ``--activation`` or ``--threshold`` replaced.

    Attributes:
        used: the value in the artifact.
        config: the value in config.json.
    """

    used: float | str
    config: float | str | None = None


@dataclass(frozen=True)
class FfnRecord:
    """One FFN: the operator that it became, or the reason why it stays dense; see `graph_passes.FfnOutcome`."""

    layer: int
    module: str
    op: str
    activation: str
    threshold: float
    d_model: int
    d_ff: int
    reason: str
    linears: tuple[str, ...] = ()
    node: str = ""
    source: str = ""

    @property
    def rewritten(self) -> bool:
        """Whether it became a sparse operator."""
        return not self.reason


@dataclass(frozen=True)
class LinearRecord:
    """The matrices outside the rewritten FFNs: attention, lm_head, embedding.

    Attributes:
        weight_format: how they are stored.
        modules: their PyTorch module paths.
        exceptions: formats of those of ``modules`` that are stored in another one.
    """

    weight_format: str
    modules: tuple[str, ...] = ()
    exceptions: dict[str, str] = field(default_factory=dict)

    def format_of(self, module: str) -> str:
        """Return how ``module``'s matrix is stored."""
        return self.exceptions.get(module, self.weight_format)


@dataclass(frozen=True)
class Manifest:
    """The contents of prosparse.json.

    Attributes:
        source: what the artifact was made from.
        versions: packages that made it.
        opset_imports: opset version by domain.
        operators: names of our operators in the graphs.
        weight_format: format of the rewritten FFNs' weights; None if they keep the source's float type. Operator names
            in ``ffns`` state each FFN's own.
        ffns: every FFN found in the graph.
        decomposed: written in standard ONNX operators (``--decomposed``).
        onnxruntime: version range that runs it; None if unknown.
        attention: an operator of ours, ``GroupQueryAttention`` (``--kv-cache i8``, or what ours does not cover),
            ``MultiHeadAttention`` (encoders, encoder-decoders) or ``unfused``; None if it was not examined.
        attention_not_fused: one line for each attention that was not fused.
        already_sparse: sparse operators that ``prosparse optimize`` found in its input, counted by weight format.
        linears: the other matrices; None if they stay as in the source.
        rounding: how scales and formats of integer matrices were chosen; None for float formats.
        overrides: settings of config.json that were replaced.
        accuracy_level: 4 if operators with integer weights may hold activations with 8 bits, as their names end.
        kv_cache: how an 8-bit KV cache is scaled; None for float32.
        encoder: file name of the encoder; the graph is the decoder of an encoder-decoder.
        calibration: the threshold search that chose the thresholds.
        approximation: what ``--approximate`` changed.
        predicted_speedup: from ``--profile-text``.
        output_check: how ``prosparse optimize`` compared its output with its input.
        files: graph and external data by name.
        libraries: operator libraries by platform.
        validation: the last result of ``prosparse validate``.
        format: version of this file's layout.
    """

    source: ModelFolderSource | OnnxFileSource
    versions: dict[str, str]
    opset_imports: dict[str, int]
    operators: tuple[str, ...] = ()
    weight_format: str | None = None
    ffns: tuple[FfnRecord, ...] = ()
    decomposed: bool = False
    onnxruntime: str | None = None
    attention: str | None = None
    attention_not_fused: tuple[str, ...] = ()
    already_sparse: dict[str, int] = field(default_factory=dict)
    linears: LinearRecord | None = None
    rounding: RoundingRecord | None = None
    overrides: dict[str, OverrideRecord] = field(default_factory=dict)
    accuracy_level: int = 0
    kv_cache: KvCacheRecord | None = None
    encoder: str | None = None
    calibration: ThresholdSearch | None = None
    approximation: ApproximationRecord | None = None
    predicted_speedup: PredictedSpeedup | None = None
    output_check: OutputCheck | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    libraries: dict[str, LibraryRecord] = field(default_factory=dict)
    validation: ValidationRecord | None = None
    format: int = _FORMAT

    @property
    def rewritten(self) -> tuple[FfnRecord, ...]:
        """FFNs that became sparse operators."""
        return tuple(ffn for ffn in self.ffns if ffn.rewritten)

    @property
    def not_rewritten(self) -> tuple[FfnRecord, ...]:
        """FFNs that stay dense."""
        return tuple(ffn for ffn in self.ffns if not ffn.rewritten)

    @property
    def fused_attention(self) -> bool:
        """Whether every attention is ours or GroupQueryAttention, whose KV cache may stay in one buffer."""
        return self.attention in (GROUP_QUERY_ATTENTION, *ATTENTION)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that prosparse.json holds."""
        values: dict[str, Any] = to_json(self)
        return {"format": values.pop("format"), **values}


def read_manifest(path: Path) -> Manifest | None:
    """Return prosparse.json next to the graph ``path``, or None if there is no such file.

    Raises:
        ProSparseError: it is damaged, or written by a version with another layout.
    """
    file = path.parent / MANIFEST
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProSparseError(f"manifest: {file}: expected JSON, got {error}", hint="export the model again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != _FORMAT:
        raise ProSparseError(
            f"manifest: {file}: expected format {_FORMAT}, got {found!r:.40}",
            hint="export the model again with this version of prosparse-export",
        )
    try:
        return from_json(Manifest, values)
    except ValueError as error:
        raise ProSparseError(
            f"manifest: {file}: {error}", hint="export the model again with this version of prosparse-export"
        ) from error


def require_manifest(path: Path) -> Manifest:
    """Return prosparse.json next to the graph ``path``.

    Raises:
        ProSparseError: it is missing or damaged.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise ProSparseError(
            f"manifest: {path.parent}: expected a {MANIFEST} next to {path.name}",
            hint="copy the whole folder that prosparse-export or prosparse optimize wrote",
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write prosparse.json into ``folder``, replacing the one that is there.

    Raises:
        ProSparseError: the folder cannot be written to, or the disk is full.
    """
    atomic_write(folder / MANIFEST, json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n")
