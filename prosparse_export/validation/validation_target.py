"""The target of a validation: an artifact, its manifest, and the model folder that it was exported from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from prosparse_export.analysis.cache_scales import LayerScales, cache_scales
from prosparse_export.analysis.ffn_nodes import FfnNode, ffn_nodes, initializer, read_graph
from prosparse_export.artifact.integrity import check_files, sha256_file
from prosparse_export.artifact.manifest import FfnRecord, ModelFolderSource, require_manifest
from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.artifact.model_settings import context_length
from prosparse_export.errors import ProSparseError
from prosparse_export.export.load import load_model_folder
from prosparse_export.export.rounded_reference import (
    StoredAs,
    checkpoint_format,
    format_bound,
    stored_formats,
    threshold_crossings,
)
from prosparse_models import Checkpoint

__all__ = ["ValidationTarget", "open_target"]


@dataclass(frozen=True)
class ValidationTarget:
    """An artifact and its model folder.

    Attributes:
        folder: the model folder.
        path: the artifact.
        graph: its graph, without external data.
        nodes: its sparse operators, with the activations recorded in the manifest.
        linears: module paths of each operator's linear layers, down_proj last, by the operator's module.
        formats: formats of the matrices that are not stored as float32, by module path.
        rounded: those of ``formats`` that differ from the checkpoint's own.
        crossings: expected threshold crossings by rounding, see `threshold_crossings`.
        weights: weight format of the FFNs.
        accuracy_level: the artifact's.
        lossy: the stored weights, activations, or the KV cache are rounded, or activations are dropped.
        fused_attention: the graph left-aligns the rows of a padded batch (docs/architecture.md).
        sources: SHA-256 of the model folder's files, by name.
        positions: the longest context in config.json; None if not stated.
        overrides: --activation and --threshold of the export.
        trust: whether Python code in the folder may run.
        approximation: the manifest's record of --approximate; None without it.
        cache_scales: scales of an 8-bit KV cache by layer; empty for float32.
    """

    folder: Path
    path: Path
    graph: onnx.ModelProto
    nodes: list[FfnNode]
    linears: dict[str, list[str]]
    formats: dict[str, StoredAs]
    rounded: dict[str, StoredAs]
    crossings: float
    weights: str
    accuracy_level: int
    lossy: bool
    fused_attention: bool
    sources: dict[str, str]
    positions: int | None
    overrides: dict[str, Any]
    trust: bool
    approximation: ApproximationRecord | None
    cache_scales: list[LayerScales]

    @property
    def compensated(self) -> frozenset[str]:
        """Modules whose integers are not the nearest ones."""
        return frozenset(name for name, stored in self.formats.items() if stored.compensated)

    @property
    def outside(self) -> dict[str, StoredAs]:
        """`formats` of the matrices outside sparse operators."""
        inside = {name for names in self.linears.values() for name in names}
        return {name: stored for name, stored in self.formats.items() if name not in inside}

    def initializer(self, name: str) -> NDArray[np.generic]:
        """Return the value of an initializer.

        Raises:
            KeyError: the graph has no initializer of that name.
        """
        return initializer(self.graph, self.path.parent, name)

    def bound(self, largest: float) -> float:
        """Return the bound on a logit's difference; ``largest`` is the largest absolute logit."""
        return format_bound(self.formats, largest, self.crossings, self.accuracy_level)

    def load(self, *, low_memory: bool) -> Checkpoint:
        """Load the PyTorch model, with its matrices left in their files if ``low_memory``.

        Raises:
            ProSparseError: the folder cannot be read.
        """
        return load_model_folder(self.folder, trust_remote_code=self.trust, in_files=low_memory, **self.overrides)


def open_target(folder: Path, path: Path, *, trust: bool = False) -> ValidationTarget:
    """Read the graph and manifest of ``path`` and check that it was exported from ``folder``.

    Raises:
        ProSparseError: it was exported from other files, is not a decoder, or cannot be read.
    """
    if not folder.is_dir():
        problem = "expected a folder, got a file" if folder.exists() else "no such folder"
        hint = "pass the model folder first, then the .onnx file" if folder.suffix == ".onnx" else "check the path"
        raise ProSparseError(f"model folder: {folder}: {problem}", hint=hint)
    graph = read_graph(path)
    check_files(path)
    manifest = require_manifest(path)
    source = manifest.source
    if not isinstance(source, ModelFolderSource):
        raise ProSparseError(
            f"artifact: {path}: expected an export of a model folder, got a file that prosparse optimize rewrote",
            hint="optimize compared it with its input file; to validate against a model folder, export that folder",
        )
    if all(value.name != "logits" for value in graph.graph.output):
        raise ProSparseError(
            f"artifact: {path}: expected a decoder with logits, got an encoder",
            hint="encoders need no validation: the export compares their hidden states with PyTorch",
        )
    if manifest.encoder is not None:
        raise ProSparseError(
            f"artifact: {path}: expected a decoder-only model, got an encoder-decoder",
            hint="the export compared it with PyTorch; run it with `prosparse generate`",
        )
    _check_sources(folder, path, source.sha256)
    ffns = manifest.rewritten
    own = checkpoint_format(source.weight_dtype)
    formats = stored_formats(manifest, path)
    return ValidationTarget(
        folder=folder,
        path=path,
        graph=graph,
        nodes=_as_exported(ffn_nodes(graph), ffns),
        linears={ffn.module: list(ffn.linears) for ffn in ffns if ffn.linears},
        formats=formats,
        rounded={name: stored for name, stored in formats.items() if stored.weights != own},
        crossings=threshold_crossings(manifest),
        weights=manifest.weight_format or "f32",
        accuracy_level=manifest.accuracy_level,
        lossy=any(stored.weights != own for stored in formats.values())
        or manifest.approximation is not None
        or manifest.accuracy_level == 4
        or manifest.kv_cache is not None,
        fused_attention=manifest.fused_attention,
        sources=source.sha256,
        positions=context_length(path.parent),
        overrides={name: override.used for name, override in manifest.overrides.items()},
        trust=trust,
        approximation=manifest.approximation,
        cache_scales=cache_scales(graph, path.parent),
    )


def _check_sources(folder: Path, path: Path, sources: Mapping[str, str]) -> None:
    for name, expected in sources.items():
        file = folder / name
        got = sha256_file(file) if file.is_file() else "no such file"
        if got != expected:
            raise ProSparseError(
                f"artifact: {path}: was exported from another model: {file}: expected SHA-256 {expected[:12]}, "
                f"got {got[:12]}",
                hint="pass the model folder that it was exported from, or export this one",
            )


def _as_exported(nodes: list[FfnNode], ffns: Sequence[FfnRecord]) -> list[FfnNode]:
    """Return the operators with layer numbers and activations from the manifest: the graph's may be wrong.

    Layer numbers count the model's FFNs, those left dense included.
    """
    found = {ffn.module: ffn for ffn in ffns}
    return [
        replace(node, layer=ffn.layer, activation=ffn.activation, threshold=ffn.threshold)
        if (ffn := found.get(node.module)) is not None
        else node
        for node in nodes
    ]
