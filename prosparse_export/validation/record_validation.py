"""Record a validation in the artifact's manifest, where `prosparse info` reads it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from prosparse_export.artifact.manifest import read_manifest, write_manifest
from prosparse_export.artifact.measured_records import (
    FailedCheck,
    PartCost,
    QualityRecord,
    SparsityRecord,
    ValidatedFiles,
    ValidationRecord,
    WeightsRecord,
)
from prosparse_export.errors import ProSparseError
from prosparse_export.validation.result import Validation

__all__ = ["record_validation", "summary"]


def summary(result: Validation) -> ValidationRecord:
    """Return the part of a validation that the manifest records."""
    sparsity, weights = result.sparsity, result.stored_weights
    artifact = result.artifact
    return ValidationRecord(
        passed=result.passed,
        checks=len(result.checks),
        failed=tuple(FailedCheck(c.name, c.measured, c.allowed) for c in result.checks if not c.passed),
        bound=result.max_abs_diff,
        exact_against=result.exact_against,
        tokens=result.tokens,
        texts=result.texts,
        artifact=ValidatedFiles(artifact["sha256"], artifact.get("data_bytes"), artifact.get("data_sha256")),
        versions=result.versions,
        quality=tuple(QualityRecord(**asdict(quality)) for quality in result.quality),
        lossy=result.lossy,
        greedy_match=result.greedy_match,
        greedy_tokens=result.greedy_tokens,
        sparsity=None if sparsity is None else SparsityRecord(**asdict(sparsity)),
        stored_weights=None if weights is None else WeightsRecord(**asdict(weights)),
        quantization_costs=tuple(PartCost(**asdict(cost)) for cost in result.quantization_costs),
    )


def record_validation(path: Path, result: Validation) -> bool:
    """Write the result into prosparse.json next to the graph ``path``, all or nothing.

    Returns:
        False if there is no manifest or the folder is not writable.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return False
    try:
        write_manifest(path.parent, replace(manifest, validation=summary(result)))
    except ProSparseError:
        return False
    return True
