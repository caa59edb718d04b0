"""Loading and training sparse models with torch and transformers; no ONNX.

Loads checkpoints with a ReLU-like FFN activation, including released sparse models that transformers does not support.
"""

from prosparse_models.activation import FatReLU
from prosparse_models.errors import CheckpointError, TrainingError
from prosparse_models.ffns import Ffn, find_ffns
from prosparse_models.kv_cache import cache_argument, cache_of
from prosparse_models.layer_kinds import LayerPlan, few_layers, plan_layers
from prosparse_models.loading.checkpoint import Checkpoint, load_checkpoint
from prosparse_models.loading.file_weights import FileWeight, FileWeights
from prosparse_models.loading.substitution import substitute_activation
from prosparse_models.sparsity import Measurement, measure
from prosparse_models.training.schedule import l1_coefficient

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "FatReLU",
    "Ffn",
    "FileWeight",
    "FileWeights",
    "LayerPlan",
    "Measurement",
    "TrainingError",
    "cache_argument",
    "cache_of",
    "few_layers",
    "find_ffns",
    "l1_coefficient",
    "load_checkpoint",
    "measure",
    "plan_layers",
    "substitute_activation",
]
