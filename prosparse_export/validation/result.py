"""What a validation found, and which limits it breaks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from prosparse_export.validation.determinism import Determinism
from prosparse_export.validation.exactness import Comparison
from prosparse_export.validation.explain import Finding
from prosparse_export.validation.limits import Limits
from prosparse_export.validation.metrics import Quality
from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights
from prosparse_export.validation.quantization_ablation import RoundingCost

__all__ = ["Check", "Sparsity", "Validation", "check_limits"]


@dataclass(frozen=True)
class Sparsity:
    """Share of exact zeros at down_proj's input, of the artifact.

    Attributes:
        mean: over layers.
        by_layer: in the graph's order.
        tokens: counted.
        layers: number of each layer in the model; some between may be dense.
    """

    mean: float
    by_layer: tuple[float, ...]
    tokens: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: what.
        measured: what it is, in words.
        allowed: what it may be.
        passed: it holds.
        about_quality: it is a limit on what the artifact loses against the checkpoint's own weights.
    """

    name: str
    measured: str
    allowed: str
    passed: bool
    about_quality: bool = False


@dataclass(frozen=True)
class Validation:
    """Everything that was found.

    Attributes:
        comparisons: each way of running it, against ``exact_against``.
        max_abs_diff: bound on a logit's difference in them.
        exact_against: the dense model with the stored weights that the comparisons are with.
        quality: the runs against PyTorch with the checkpoint's own weights.
        lossy: the stored weights are rounded ones, so ``quality`` has a cost that ``comparisons`` has not.
        greedy_match: for each prompt, tokens equal to PyTorch's before the first that differs, with the library.
        greedy_tokens: tokens generated for each prompt.
        sparsity: of the artifact; None if it has no sparse operator.
        operators: each operator and linear layer by itself.
        stored_weights: the artifact's weights against the checkpoint's; None if they were not compared.
        determinism: bits from run to run.
        unknown_operators: operators that the library lacks, so that their dense bodies ran.
        checks: everything that must hold, limits included.
        findings: where it leaves its bounds first, from --explain or from the layers' own check.
        roundings: what rounding costs by part, if --explain looked and only limits on quality were broken.
        explained: --explain has looked.
        tokens: positions compared.
        texts: name and hash of the token ids of each text.
        artifact: SHA-256 of graph and weights, and their size.
        versions: of what took part.
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
    roundings: tuple[RoundingCost, ...]
    explained: bool
    tokens: int
    texts: dict[str, str]
    artifact: dict[str, Any]
    versions: dict[str, str]
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        """Everything holds."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; numbers that are none or infinite become strings."""
        values = asdict(self)
        values["operators"] = [{**asdict(o), "passed": o.passed} for o in self.operators]
        for entry, quality in zip(values["quality"], self.quality, strict=True):
            entry["perplexity_increase"] = quality.perplexity_increase
        result: dict[str, Any] = _plain({"passed": self.passed, "bound": self.max_abs_diff, **values})
        return result


def check_limits(
    limits: Limits,
    quality: Quality,
    sparsity: Sparsity | None,
    greedy_match: tuple[int, ...],
    greedy_tokens: int,
) -> list[Check]:
    """Return one check per limit that is set. A number that is none breaks its limit."""
    checks = []

    def check(name: str, measured: str, allowed: str, passed: bool) -> None:
        checks.append(Check(name, measured, allowed, passed, about_quality=not name.startswith("sparsity")))

    if (limit := limits.max_ppl_increase) is not None:
        value = quality.perplexity_increase
        check("perplexity increase", f"{value:+.3%}", f"at most {limit:.3%}", value <= limit)
    for name, least, value in (("top-1", limits.min_top1, quality.top1), ("top-5", limits.min_top5, quality.top5)):
        if least is not None:
            check(f"{name} agreement", f"{value:.3%}", f"at least {least:.3%}", value >= least)
    if (limit := limits.max_kl) is not None:
        check("mean KL divergence", f"{quality.kl_mean:.3g}", f"at most {limit:.3g}", quality.kl_mean <= limit)
    if (limit := limits.min_greedy_match) is not None:
        value = sum(greedy_match) / max(greedy_tokens * len(greedy_match), 1)
        check("greedy match", f"{value:.1%}", f"at least {limit:.1%}", value >= limit)
    by_layer = {} if sparsity is None else dict(zip(sparsity.layers, sparsity.by_layer, strict=True))
    if (limit := limits.min_sparsity) is not None:
        value = 0.0 if sparsity is None else sparsity.mean
        check("sparsity", f"{value:.2%}", f"at least {limit:.2%}", value >= limit)
    for layer, limit in sorted(limits.min_sparsity_by_layer.items()):
        if layer not in by_layer:
            check(f"sparsity of layer {layer}", "no such sparse layer", f"at least {limit:.2%}", False)
        else:
            passed = by_layer[layer] >= limit
            check(f"sparsity of layer {layer}", f"{by_layer[layer]:.2%}", f"at least {limit:.2%}", passed)
    return checks


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
