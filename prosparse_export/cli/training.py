"""The packages of the extra [train], which training and calibration need."""

from __future__ import annotations

from importlib.util import find_spec

from prosparse_export.errors import ProSparseError

__all__ = ["require_packages"]


def require_packages(*names: str) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        ProSparseError: a package is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ProSparseError(
            f"training: required packages are not installed: {', '.join(missing)}",
            hint="pip install 'prosparse-export[train]'",
        )
