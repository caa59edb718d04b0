"""Model side of prosparse-export: torch and transformers, no ONNX.

Reading checkpoints whose feed-forward activation is ReLU-like, among them released sparse ones
that transformers has no model type for.
"""

from prosparse_models.activation import FatReLU
from prosparse_models.checkpoint import Checkpoint, load_checkpoint
from prosparse_models.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "FatReLU", "load_checkpoint"]
