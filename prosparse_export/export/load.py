"""Load a model folder into PyTorch."""

from __future__ import annotations

from pathlib import Path

from prosparse_export.quiet import quiet
from prosparse_models import Checkpoint, load_checkpoint

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
        CheckpointError: the folder is missing, damaged or unsupported.
    """
    with quiet():
        return load_checkpoint(
            folder,
            trust_remote_code=trust_remote_code,
            activation=activation,
            threshold=threshold,
            in_files=in_files,
            encoder_decoder=encoder_decoder,
        )
