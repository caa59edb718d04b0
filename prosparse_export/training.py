"""Stages of training and calibration, with their errors as the command line's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prosparse_export.errors import ProSparseError
from prosparse_export.model_folder import quiet

__all__ = ["run_sparsify"]


@contextmanager
def _as_user_errors(*needed: str) -> Iterator[None]:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ProSparseError(
            f"training: expected the packages {', '.join(needed)}, got no {', '.join(missing)}",
            hint="pip install 'prosparse-export[train]'",
        )
    from prosparse_models.errors import CheckpointError, TrainingError

    try:
        with quiet():
            yield
    except (CheckpointError, TrainingError) as error:
        raise ProSparseError(str(error), hint=error.hint) from error


def run_sparsify(
    model_dir: Path,
    out_dir: Path,
    *,
    recipe_name: str,
    settings: Sequence[str],
    stages: Sequence[tuple[float, int]],
    threads: int | None,
    monitor: Any,
    **options: Any,
) -> dict[str, Any] | None:
    """Run `prosparse_models.sparsify.sparsify`; None in all processes but the first.

    Raises:
        ProSparseError: what the user gave does not fit, or the extra [train] is not installed.
    """
    with _as_user_errors("accelerate", "datasets", "matplotlib"):
        import torch

        from prosparse_models.recipe import load_recipe, override
        from prosparse_models.sparsify import SparsifyOptions, sparsify

        if threads is not None:
            torch.set_num_threads(threads)
        recipe = override(load_recipe(recipe_name), settings, stages)
        summary = sparsify(model_dir, out_dir, recipe, SparsifyOptions(**options), monitor)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return summary if int(os.environ.get("RANK", "0")) == 0 else None
