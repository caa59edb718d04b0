"""First stage: a model folder becomes a PyTorch model."""

from __future__ import annotations

from pathlib import Path

from prosparse_export.errors import ProSparseError
from prosparse_export.quiet import quiet
from prosparse_models import Checkpoint, CheckpointError, load_checkpoint

__all__ = ["load_model_folder"]


def load_model_folder(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    activation: str | None = None,
    threshold: float | None = None,
    in_files: bool = False,
    encoder_decoder: bool = False,
) -> Checkpoint:
    """Load ``folder`` in float32; see `prosparse_models.load_checkpoint`.

    Raises:
        ProSparseError: the folder is not a model that can be read.
    """
    try:
        with quiet():
            return load_checkpoint(
                folder,
                trust_remote_code=trust_remote_code,
                activation=activation,
                threshold=threshold,
                in_files=in_files,
                encoder_decoder=encoder_decoder,
            )
    except CheckpointError as error:
        raise ProSparseError(str(error), hint=error.hint) from error
