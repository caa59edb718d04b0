"""Entries of prosparse.json as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["describe_approximation", "describe_calibration", "describe_expected"]


def describe_expected(expected: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the lines that say what speed to expect; none without calibration."""
    if expected is None:
        return
    for layer in expected["layers"]:
        sparsity = "not measured" if layer["sparsity"] is None else f"{layer['sparsity']:.0%} sparse"
        yield f"layer {layer['layer']}: {sparsity}, {layer['speedup']:.2f}x"
    yield (
        f"whole model: {expected['decode_speedup']:.2f}x decode, {1 / expected['decode_seconds']:.1f} tokens/s "
        f"({expected['threads']} threads, {expected['bandwidth'] / 1e9:.1f} GB/s here; FFNs are "
        f"{expected['ffn_share']:.0%} of a dense step's bytes)"
    )


def describe_approximation(recorded: Mapping[str, Any]) -> str:
    """Return the manifest's entry on --approximate as one line."""
    return (
        f"{recorded['activation']} approximated, {recorded['keep']:.0%} of the neurons kept: perplexity "
        f"{recorded['perplexity_dense']:.4g} -> {recorded['perplexity']:.4g} ({recorded['perplexity_change']:+.2%}) on "
        f"{recorded['perplexity_tokens']} tokens of the calibration text that set no threshold; "
        f"zeros {recorded['sparsity']:.1%}"
    )


def describe_calibration(recorded: Mapping[str, Any]) -> str:
    """Return the manifest's entry on the threshold search as one line."""
    points, chosen = recorded["points"], recorded["chosen"]
    low, high = min(chosen["thresholds"]), max(chosen["thresholds"])
    parameter = f"threshold {low:.4g}"
    if recorded["search_parameter"] != "threshold":
        parameter = f"{chosen['value']:.3g} of each layer's energy dropped (thresholds {low:.4g} to {high:.4g})"
    return (
        f"{parameter}: perplexity {points[0]['perplexity']:.4g} -> {chosen['perplexity']:.4g} "
        f"(budget {recorded['budget']:+.2%}), sparsity {points[0]['sparsity']:.2%} -> {chosen['sparsity']:.2%}; "
        f"{len(points)} tried on {recorded['tokens']} tokens"
    )
