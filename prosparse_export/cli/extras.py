"""Packages of the optional extras [train], [eval], and [serve]."""

from __future__ import annotations

from importlib.util import find_spec

from prosparse_export.errors import ProSparseError

__all__ = ["require_packages"]

_USES = {"train": "training", "eval": "evaluation", "serve": "serving"}


def require_packages(*names: str, extra: str = "train") -> None:
    """Check that packages are installed, without importing them.

    Raises:
        ProSparseError: a package is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ProSparseError(
            f"{_USES[extra]}: required packages are not installed: {', '.join(missing)}",
            hint=f"pip install '.[{extra}]'",
        )
