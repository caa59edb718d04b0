"""What a validation result applies to: the artifact's hashes and the versions that took part."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from prosparse_export.artifact.integrity import sha256_file
from prosparse_export.runtime.operator_library import library_info

__all__ = ["describe_artifact", "versions_in_use"]


def describe_artifact(path: Path, weights: str) -> dict[str, Any]:
    """Return name, SHA-256 and size in bytes of the graph ``path`` and its external data.

    Args:
        path: the artifact.
        weights: weight format of its FFNs.
    """
    data = path.with_name(path.name + ".data")
    described: dict[str, Any] = {"name": path.name, "sha256": sha256_file(path), "weights": weights}
    size = path.stat().st_size
    if data.is_file():
        size += data.stat().st_size
        described |= {"data_sha256": sha256_file(data), "data_bytes": data.stat().st_size}
    return {**described, "bytes": size}


def versions_in_use() -> dict[str, str]:
    """Return the versions of this package, the operator library, onnxruntime, torch and transformers."""
    library = library_info()
    return {
        "prosparse-export": version("prosparse-export"),
        "operator library": library.version,
        "ISA": library.isa_used or "none",
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
