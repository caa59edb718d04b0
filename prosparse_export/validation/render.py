"""Render a validation as text, Markdown or JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from prosparse_export.validation.checks import Sparsity
from prosparse_export.validation.quantization_ablation import QuantizationCost
from prosparse_export.validation.result import Validation

__all__ = ["as_junit", "as_markdown", "as_text"]

_PARTS = 10  # of the model, listed with their quantization cost
_AGAINST = "against PyTorch with the checkpoint's own weights"


def as_text(result: Validation) -> str:
    """Return the report for a terminal."""
    lines = [f"Exactness: logits against {result.exact_against}, {result.artifact['weights']} weights"]
    lines.append(f"{'run':40}{'tokens':>7}{'max |diff|':>12}{'top-1 differs':>15}{'ties':>6}{'greedy match':>14}")
    for c in result.comparisons:
        same = f"{c.greedy_tokens - c.greedy_differs} of {c.greedy_tokens}" if c.greedy_tokens else "-"
        numbers = f"{c.tokens:7}{c.max_abs_diff:12.2e}{c.top1_differs:15}{c.ties:6}{same:>14}"
        lines.append(f"{c.name:40}{numbers}{'' if c.passed else '  FAILED'}")
    lines += ["", f"Quality: {_AGAINST}, perplexity {result.quality[0].reference_perplexity:.4f}"]
    lines.append(
        f"{'run':40}{'tokens':>7}{'perplexity':>12}{'change':>10}{'KL mean':>10}{'KL max':>10}{'top-1':>9}{'top-5':>9}"
    )
    for q in result.quality:
        change = f"{q.perplexity_increase:+.3%}"
        lines.append(
            f"{q.name:40}{q.tokens:7}{q.perplexity:12.4f}{change:>10}{q.kl_mean:10.2e}{q.kl_max:10.2e}"
            f"{q.top1:9.2%}{q.top5:9.2%}"
        )
    if result.greedy_tokens:
        match = ", ".join(map(str, result.greedy_match))
        lines.append(
            f"greedy tokens before the first difference from PyTorch, by prompt: {match} of {result.greedy_tokens}"
        )
    if result.sparsity is not None:
        layers = " ".join(_by_layer(result.sparsity))
        lines += ["", f"Sparsity: {result.sparsity.mean:.2%} over {result.sparsity.tokens} tokens; by layer: {layers}"]
    if result.explained:
        nothing = ["explain: every layer is within its bound on the tokens examined"]
        lines += ["", *([f"first out of bounds: {finding}" for finding in result.findings] or nothing)]
    if result.quantization_costs:
        above, parts, below = _quantization_costs(result)
        lines += ["", above, f"{'part, alone':40}{'weights':>9}{'KL mean':>10}"]
        lines += [*(f"{part.module:40}{part.how:>9}{part.kl:10.2e}" for part in parts), *below]
    failed = [check for check in result.checks if not check.passed]
    lines.append("")
    lines += [f"FAILED {c.name}: measured {c.measured}; allowed {c.allowed}" for c in failed]
    verdict = (
        f"FAILED: {len(failed)} of {len(result.checks)} checks" if failed else f"passed: {len(result.checks)} checks"
    )
    lines.append(
        f"{verdict}; bound {result.max_abs_diff:.3g} on logits; top-1 and greedy tokens must agree, except for ties"
    )
    return "\n".join(lines)


def as_markdown(result: Validation) -> str:
    """Return a Markdown summary for a CI job."""
    mark = {True: "pass", False: "**FAIL**"}
    a = result.artifact
    lines = [
        f"## prosparse validate: {a['name']}: {'passed' if result.passed else '**failed**'}",
        "",
        f"{a['weights']} weights, {a['bytes'] / 1e6:,.1f} MB, {result.tokens:,} tokens of {', '.join(result.texts)}",
        "",
        "| check | measured | allowed | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {c.name} | {c.measured} | {c.allowed} | {mark[c.passed]} |" for c in result.checks]
    lines += ["", f"Quality {_AGAINST}:", "", "| run | perplexity | change | KL mean | KL max | top-1 | top-5 |"]
    lines.append("|---|---|---|---|---|---|---|")
    first = result.quality[0]
    lines.append(f"| PyTorch | {first.reference_perplexity:.4f} | | | | | |")
    lines += [
        f"| {q.name} | {q.perplexity:.4f} | {q.perplexity_increase:+.3%} | {q.kl_mean:.2e} | {q.kl_max:.2e} "
        f"| {q.top1:.2%} | {q.top5:.2%} |"
        for q in result.quality
    ]
    if result.greedy_tokens:
        match = ", ".join(map(str, result.greedy_match))
        lines += [
            "",
            f"Greedy tokens before the first difference from PyTorch, by prompt: {match} of {result.greedy_tokens}",
        ]
    if result.sparsity is not None:
        layers = ", ".join(_by_layer(result.sparsity))
        lines += ["", f"Sparsity {result.sparsity.mean:.2%}; by layer: {layers}"]
    if result.findings:
        lines += ["", "First out of bounds:", "", *(f"- {finding}" for finding in result.findings)]
    if result.quantization_costs:
        above, parts, below = _quantization_costs(result)
        lines += ["", above, "", "| part, alone | weights | KL mean |", "|---|---|---:|"]
        lines += [f"| {part.module} | {part.how} | {part.kl:.2e} |" for part in parts]
        lines += [line for text in below for line in ("", text)]
    return "\n".join(lines) + "\n"


def as_junit(result: Validation) -> str:
    """Return JUnit XML: one test case per check."""
    failures = sum(not check.passed for check in result.checks)
    total = sum(result.seconds.values())
    suite = ET.Element(
        "testsuite",
        name=f"prosparse validate {result.artifact['name']}",
        tests=str(len(result.checks)),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=f"{total:.3f}",
    )
    for check in result.checks:
        case = ET.SubElement(suite, "testcase", classname="prosparse.validate", name=check.name)
        if not check.passed:
            message = f"measured {check.measured}; allowed {check.allowed}"
            failure = ET.SubElement(case, "failure", message=message)
            lines = [message, *map(str, result.findings)]
            if result.quantization_costs:
                above, parts, below = _quantization_costs(result)
                lines += [above, *(f"{part.module} {part.how}: {part.kl:.2e}" for part in parts), *below]
            failure.text = "\n".join(lines)
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _by_layer(sparsity: Sparsity) -> list[str]:
    """Return each layer's sparsity, with layer numbers if some layers are dense."""
    numbered = sparsity.layers != tuple(range(len(sparsity.layers)))
    pairs = zip(sparsity.layers, sparsity.by_layer, strict=True)
    return [f"{number}: {value:.1%}" if numbered else f"{value:.1%}" for number, value in pairs]


def _quantization_costs(result: Validation) -> tuple[str, Sequence[QuantizationCost], list[str]]:
    """Return the line above the table of parts, the parts, and the line below if these are not all."""
    whole, *parts = result.quantization_costs
    below = [f"and {len(parts) - _PARTS} parts that cost less"] if len(parts) > _PARTS else []
    return f"Quantization: {whole.how} costs {whole.kl:.2e} nats per token", parts[:_PARTS], below
