"""Sections of prosparse.json as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from prosparse_export.artifact.measured_records import ApproximationRecord, PredictedSpeedup, ThresholdSearch
from prosparse_export.artifact.rounding_records import KvCacheRecord

__all__ = ["describe_approximation", "describe_calibration", "describe_kv_cache", "describe_speedup"]


def describe_speedup(predicted: PredictedSpeedup | None) -> Iterator[str]:
    """Yield the predicted speedup: a line per layer, then the whole model. Without a prediction, yield nothing."""
    if predicted is None:
        return
    for layer in predicted.layers:
        sparsity = "not measured" if layer.sparsity is None else f"{layer.sparsity:.0%} sparse"
        yield f"layer {layer.layer}: {sparsity}, {layer.speedup:.2f}x"
    yield (
        f"whole model: {predicted.decode_speedup:.2f}x decode, {1 / predicted.decode_seconds:.1f} tokens/s "
        f"({predicted.threads} threads, {predicted.bandwidth / 1e9:.1f} GB/s here; FFNs are "
        f"{predicted.ffn_share:.0%} of a dense step's bytes)"
    )


def describe_approximation(recorded: ApproximationRecord) -> str:
    """Return the effect of ``--approximate`` as one line."""
    return (
        f"{recorded.activation} approximated, {recorded.keep:.0%} of the neurons kept: perplexity "
        f"{recorded.dense_perplexity:.4g} -> {recorded.perplexity:.4g} ({recorded.perplexity_increase:+.2%}) on "
        f"{recorded.perplexity_tokens} held-out tokens of the profile text; "
        f"activation sparsity {recorded.sparsity:.1%}"
    )


def describe_kv_cache(recorded: KvCacheRecord) -> str:
    """Return the storage of an 8-bit KV cache as one line."""
    if recorded.scale_per == "token":
        return f"KV cache: {recorded.format}, a scale per token and 32 values"
    source = ", ".join(recorded.texts) or "random tokens"
    return f"KV cache: {recorded.format}, a scale per {recorded.scale_per} from {recorded.tokens} tokens of {source}"


def describe_calibration(search: ThresholdSearch) -> str:
    """Return the result of the threshold search as one line."""
    chosen = search.chosen
    low, high = min(chosen.thresholds), max(chosen.thresholds)
    setting = f"threshold {low:.4g}"
    if search.search_parameter != "threshold":
        setting = f"{chosen.value:.3g} of each layer's energy dropped (thresholds {low:.4g} to {high:.4g})"
    first = search.trials[0]
    return (
        f"{setting}: perplexity {first.perplexity:.4g} -> {chosen.perplexity:.4g} "
        f"(budget {search.budget:+.2%}), activation sparsity {first.sparsity:.2%} -> {chosen.sparsity:.2%}; "
        f"{len(search.trials)} trials on {search.tokens} tokens"
    )
