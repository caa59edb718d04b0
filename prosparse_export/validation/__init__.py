"""Compare an artifact with the PyTorch model that it was exported from, on real text; docs/guides/validate.md."""

from prosparse_export.validation.checks import Check, Sparsity
from prosparse_export.validation.compare import validate
from prosparse_export.validation.determinism import Determinism
from prosparse_export.validation.exactness import Comparison
from prosparse_export.validation.findings import Finding
from prosparse_export.validation.limits import Limits, parse_share, parse_sparsity, read_limits
from prosparse_export.validation.metrics import Quality
from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.quantization_ablation import QuantizationCost
from prosparse_export.validation.record_validation import record_validation
from prosparse_export.validation.render import as_junit, as_markdown, as_text
from prosparse_export.validation.result import Validation

__all__ = [
    "Check",
    "Comparison",
    "Determinism",
    "Finding",
    "Limits",
    "OperatorCheck",
    "Quality",
    "QuantizationCost",
    "Sparsity",
    "StoredWeights",
    "Validation",
    "ValidationOptions",
    "as_junit",
    "as_markdown",
    "as_text",
    "parse_share",
    "parse_sparsity",
    "read_limits",
    "record_validation",
    "validate",
]
