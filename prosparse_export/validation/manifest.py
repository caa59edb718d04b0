"""The result in the artifact's manifest, where `prosparse info` finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prosparse_export.artifact.atomic_write import write_aside
from prosparse_export.artifact.writer import MANIFEST, read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.validation.result import Validation

__all__ = ["record_validation", "summary"]


def summary(result: Validation) -> dict[str, Any]:
    """Return what the manifest keeps of a validation."""
    values = result.to_dict()
    kept = (
        "passed",
        "bound",
        "exact_against",
        "tokens",
        "texts",
        "artifact",
        "versions",
        "quality",
        "sparsity",
        "stored_weights",
    )
    short = {key: values[key] for key in (*kept, "lossy", "greedy_match", "greedy_tokens")}
    failed = [check for check in values["checks"] if not check["passed"]]
    return {**short, "checks": len(values["checks"]), "failed": failed}


def record_validation(path: Path, result: Validation) -> bool:
    """Write the result into prosparse.json beside the graph ``path``, all or nothing.

    Returns:
        False where there is no manifest, or the folder cannot be written to.
    """
    manifest = read_manifest(path)
    if not manifest:
        return False
    manifest["validation"] = summary(result)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    try:
        write_aside(path.parent / MANIFEST, text)
    except ProSparseError:
        return False
    return True
