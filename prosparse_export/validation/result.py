"""The result of a validation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from prosparse_export.validation.checks import Check, Sparsity
from prosparse_export.validation.determinism import Determinism
from prosparse_export.validation.exactness import Comparison
from prosparse_export.validation.findings import Finding
from prosparse_export.validation.metrics import Quality
from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights
from prosparse_export.validation.quantization_ablation import QuantizationCost

__all__ = ["Validation"]


@dataclass(frozen=True)
class Validation:
    """Everything that a validation measured, and its checks.

    Attributes:
        comparisons: each way of running the artifact, against ``exact_against``.
        max_abs_diff: bound on a logit's difference in ``comparisons``.
        exact_against: the dense model with the stored weights.
        quality: the runs without and with the library, against PyTorch with the checkpoint's own weights.
        lossy: the stored weights or the KV cache are rounded or activations are dropped, so ``quality`` shows a cost
            that ``comparisons`` does not.
        greedy_match: for each prompt, greedy tokens with the library before the first that differs from PyTorch's.
        greedy_tokens: tokens generated for each prompt.
        sparsity: the artifact's activation sparsity; None without sparse operators.
        operators: each operator and linear layer by itself.
        stored_weights: the artifact's weights against the checkpoint's; None if not compared.
        determinism: bits from run to run.
        unknown_operators: operators missing from the library, so that their function bodies ran.
        checks: all checks, limits included.
        findings: where the artifact first leaves its bounds, from --explain or from the check of layers.
        quantization_costs: KL by part of the model, with --explain, if the artifact is exact but lossy.
        explained: --explain ran.
        tokens: positions compared.
        texts: SHA-256 of the token ids of each text, by name.
        artifact: SHA-256 and size of the graph and its weights.
        versions: of the packages that took part.
        seconds: wall time by stage.
    """

    comparisons: tuple[Comparison, ...]
    max_abs_diff: float
    exact_against: str
    quality: tuple[Quality, ...]
    lossy: bool
    greedy_match: tuple[int, ...]
    greedy_tokens: int
    sparsity: Sparsity | None
    operators: tuple[OperatorCheck, ...]
    stored_weights: StoredWeights | None
    determinism: Determinism
    unknown_operators: tuple[str, ...]
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    quantization_costs: tuple[QuantizationCost, ...]
    explained: bool
    tokens: int
    texts: dict[str, str]
    artifact: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON; NaN and infinity become strings."""
        values = asdict(self)
        values["operators"] = [{**asdict(o), "passed": o.passed} for o in self.operators]
        for entry, quality in zip(values["quality"], self.quality, strict=True):
            entry["perplexity_increase"] = quality.perplexity_increase
        result: dict[str, Any] = _finite_or_text({"passed": self.passed, "bound": self.max_abs_diff, **values})
        return result


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite_or_text(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_text(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
