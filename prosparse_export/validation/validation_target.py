"""What is validated: an artifact, what its manifest says of it, and the model folder that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from prosparse_export.analysis.ffn_nodes import FfnNode, ffn_nodes, read_graph
from prosparse_export.artifact.integrity import check_files, sha256_file
from prosparse_export.artifact.manifest import FfnRecord, ModelFolderSource, require_manifest
from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.artifact.model_settings import context_length
from prosparse_export.errors import ProSparseError
from prosparse_export.export.load import load_model_folder
from prosparse_export.export.rounded_reference import (
    StoredAs,
    checkpoint_format,
    flips_of,
    format_bound,
    stored_formats,
)
from prosparse_models import Checkpoint

__all__ = ["Subject", "open_subject"]


@dataclass(frozen=True)
class Subject:
    """An artifact and its model folder.

    Attributes:
        folder: the model folder.
        path: the artifact.
        graph: its graph, without external data.
        nodes: its sparse operators, with the activation that the export found.
        linears: for each operator's module, the paths of its linear layers, down_proj last.
        formats: how each matrix is stored that is not stored as float32, by module path.
        rounded: those of them whose format is not the checkpoint's own.
        flips: see `flips_of`.
        weights: the format of the feed-forward blocks.
        lossy: the stored weights are not the checkpoint's own, or activations are dropped.
        fused_attention: rows of a padded batch are turned left inside the graph (docs/architecture.md).
        sources: SHA-256 of the model folder's files, by name.
        positions: the longest context, if config.json says it.
        overrides: --activation and --threshold of the export.
        trust: Python code in the folder may run.
        approximation: of --approximate, if there was one.
    """

    folder: Path
    path: Path
    graph: onnx.ModelProto
    nodes: list[FfnNode]
    linears: dict[str, list[str]]
    formats: dict[str, StoredAs]
    rounded: dict[str, StoredAs]
    flips: float
    weights: str
    lossy: bool
    fused_attention: bool
    sources: dict[str, str]
    positions: int | None
    overrides: dict[str, Any]
    trust: bool
    approximation: ApproximationRecord | None

    @property
    def outside(self) -> dict[str, StoredAs]:
        """`formats` of the matrices that are in no sparse operator."""
        inside = {name for names in self.linears.values() for name in names}
        return {name: stored for name, stored in self.formats.items() if name not in inside}

    def bound(self, largest: float) -> float:
        """Return the bound on a logit's difference; ``largest`` is the largest absolute logit."""
        return format_bound(self.formats, largest, self.flips)

    def load(self, *, low_memory: bool) -> Checkpoint:
        """Load PyTorch's model, with its matrices left in their files if memory is low.

        Raises:
            ProSparseError: the folder cannot be read.
        """
        return load_model_folder(self.folder, trust_remote_code=self.trust, in_files=low_memory, **self.overrides)


def open_subject(folder: Path, path: Path, *, trust: bool = False) -> Subject:
    """Read graph and manifest of ``path``, and see that ``folder`` is what it was exported from.

    Raises:
        ProSparseError: it was exported from other files, is no decoder, or cannot be read.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "none"
        hint = "the model folder comes first, then the .onnx file" if folder.suffix == ".onnx" else "check the path"
        raise ProSparseError(f"model folder: {folder}: expected a folder, got {got}", hint=hint)
    graph = read_graph(path)
    check_files(path)
    manifest = require_manifest(path)
    source = manifest.source
    if not isinstance(source, ModelFolderSource):
        raise ProSparseError(
            f"artifact: {path}: expected an export of a model folder, got a file that prosparse optimize rewrote",
            hint="optimize compared it with the file that it came from; export the model folder to validate against it",
        )
    if all(value.name != "logits" for value in graph.graph.output):
        raise ProSparseError(
            f"artifact: {path}: expected a decoder, whose logits can be compared, got an encoder",
            hint="its export compared its hidden states with PyTorch's",
        )
    if manifest.encoder is not None:
        raise ProSparseError(
            f"artifact: {path}: expected a decoder alone, got an encoder-decoder, whose logits on a running text mean "
            "nothing",
            hint="its export compared it with PyTorch; `prosparse generate` runs it",
        )
    _check_sources(folder, path, source.sha256)
    ffns = manifest.rewritten
    own = checkpoint_format(source.weight_dtype)
    formats = stored_formats(manifest)
    return Subject(
        folder=folder,
        path=path,
        graph=graph,
        nodes=_as_exported(ffn_nodes(graph), ffns),
        linears={ffn.module: list(ffn.linears) for ffn in ffns if ffn.linears},
        formats=formats,
        rounded={name: stored for name, stored in formats.items() if stored.weights != own},
        flips=flips_of(manifest),
        weights=manifest.weight_format or "f32",
        lossy=any(stored.weights != own for stored in formats.values()) or manifest.approximation is not None,
        fused_attention=manifest.fused_attention,
        sources=source.sha256,
        positions=context_length(path.parent),
        overrides={name: override.used for name, override in manifest.overrides.items()},
        trust=trust,
        approximation=manifest.approximation,
    )


def _check_sources(folder: Path, path: Path, sources: Mapping[str, str]) -> None:
    for name, expected in sources.items():
        file = folder / name
        got = sha256_file(file) if file.is_file() else "no such file"
        if got != expected:
            raise ProSparseError(
                f"artifact: {path}: was exported from another model: {file}: expected SHA-256 {expected[:12]}, "
                f"got {got[:12]}",
                hint="give the model folder that it was exported from, or export this one",
            )


def _as_exported(nodes: list[FfnNode], ffns: Sequence[FfnRecord]) -> list[FfnNode]:
    """Return the operators as the export found them: what the graph says of an activation now may be wrong.

    They are numbered as the model's blocks are, those that stayed dense included.
    """
    found = {ffn.module: ffn for ffn in ffns}
    return [
        replace(node, layer=ffn.layer, activation=ffn.activation, threshold=ffn.threshold)
        if (ffn := found.get(node.module)) is not None
        else node
        for node in nodes
    ]
