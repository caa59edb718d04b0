"""The checks of a validation: what was measured, what is allowed, and whether it passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prosparse_export.validation.determinism import Determinism
from prosparse_export.validation.exactness import Comparison
from prosparse_export.validation.findings import Finding
from prosparse_export.validation.limits import Limits
from prosparse_export.validation.metrics import Quality
from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights

__all__ = ["Check", "Sparsity", "determinism_check", "exactness_checks", "layer_checks", "limit_checks"]


@dataclass(frozen=True)
class Check:
    """One requirement.

    Attributes:
        name: the requirement.
        measured: the measured value, in words.
        allowed: the allowed values.
        passed: whether it holds.
    """

    name: str
    measured: str
    allowed: str
    passed: bool


@dataclass(frozen=True)
class Sparsity:
    """The artifact's activation sparsity: the fraction of exact zeros at down_proj's input.

    Attributes:
        mean: over layers.
        by_layer: in graph order.
        tokens: tokens counted.
        layers: each entry's layer number in the model; layers left dense are not listed.
    """

    mean: float
    by_layer: tuple[float, ...]
    tokens: int
    layers: tuple[int, ...]


def exactness_checks(
    runs: Sequence[Comparison],
    bound: float,
    operators: Sequence[OperatorCheck],
    weights: StoredWeights | None,
    unknown: Sequence[str],
    total_operators: int,
) -> list[Check]:
    """Return the checks on logits, operators and stored weights.

    Args:
        runs: each way of running the artifact.
        bound: on a logit's difference.
        operators: operators compared with float64.
        weights: initializers compared with the checkpoint; None if they were not.
        unknown: operators missing from the library.
        total_operators: sparse operators and linear layers in the graph.
    """
    checks = [
        Check(
            c.name,
            f"{c.max_abs_diff:.3g}, {c.top1_differs} top-1 and {c.greedy_differs} greedy tokens differ",
            f"at most {bound:.3g} on logits, same tokens",
            c.passed,
        )
        for c in runs
    ]
    missing = ", ".join(unknown) + " missing" if unknown else "all"
    checks.append(Check("operators in the library", missing, "all", not unknown))
    checks += [_operator_check(o) for o in operators if not o.passed]
    if operators:
        passed = sum(o.passed for o in operators)
        got = f"{passed} of {len(operators)}, worst {max(o.worst for o in operators):.2g} times its bound"
        if uncompared := total_operators - len(operators):
            got += f"; {uncompared} more have no PyTorch module to compare with"
        checks.append(Check("operators against float64", got, "within their bounds", passed == len(operators)))
    if weights is not None:
        got = f"{weights.compared} initializers, {weights.share:.1%} of bytes"
        got = f"{', '.join(weights.wrong)} differ" if weights.wrong else got
        checks.append(Check("stored weights", got, "the checkpoint's, bit for bit", not weights.wrong))
    return checks


def _operator_check(o: OperatorCheck) -> Check:
    got = f"{o.worst:.3g} times its bound" if not o.worst <= 1 else "results within bounds"
    got += f"; weights differ from the checkpoint: {', '.join(o.wrong_weights)}" if o.wrong_weights else ""
    where = "" if o.layer is None else f"layer {o.layer}: "
    return Check(f"{where}{o.op} ({o.module})", got, "float64 within its bound", False)


def layer_checks(findings: Sequence[Finding], tokens: int) -> list[Check]:
    """Return the checks on values between operators; ``tokens`` is the length of the text that was run."""
    found: dict[str, Finding] = {}
    for finding in findings:  # several runs may report the same place
        found.setdefault(f"{finding.where}: {finding.op}", finding)
    wrong = [
        Check(where, f"{f.difference:.3g}, {f.run}", f"at most {f.bound:.3g}", False) for where, f in found.items()
    ]
    got = f"{len(found)} out of bounds" if found else f"{tokens} tokens, run in six ways"
    return [*wrong, Check("layers against PyTorch", got, "within their bounds", not found)]


def determinism_check(repeated: Determinism) -> Check:
    """Return the check that repeated runs agree bit for bit."""
    got = repeated.first or f"{repeated.tokens} tokens"
    return Check("bit-identical runs", got, "identical bits", repeated.passed)


def limit_checks(
    limits: Limits,
    quality: Quality,
    sparsity: Sparsity | None,
    greedy_match: tuple[int, ...],
    greedy_tokens: int,
) -> list[Check]:
    """Return one check per limit that is set. A NaN fails its limit."""
    checks = []

    def check(name: str, measured: str, allowed: str, passed: bool) -> None:
        checks.append(Check(name, measured, allowed, passed))

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
            check(f"sparsity of layer {layer}", "not a sparse layer", f"at least {limit:.2%}", False)
        else:
            passed = by_layer[layer] >= limit
            check(f"sparsity of layer {layer}", f"{by_layer[layer]:.2%}", f"at least {limit:.2%}", passed)
    return checks
