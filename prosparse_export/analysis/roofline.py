"""Predict a decode step from the bytes that it reads, assuming that memory bandwidth is the bottleneck.

A decode step reads every weight of the model once, except that a sparse FFN reads only the active neurons' rows of
up_proj and down_proj. With a share a of active neurons, a gated FFN in one format reads (1 + 2a) / 3 of its bytes and
an ungated one (1 + a) / 2. docs/guides/run.md compares predictions with measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_passes import FORMAT_SPECS, FfnFormat, Format, format_of

__all__ = ["Cost", "Ffn", "bits_per_weight", "predict"]


def bits_per_weight(weights: Format) -> float:
    """Return the bits per stored weight, including its share of the scale (one f16 for 32 weights)."""
    return FORMAT_SPECS[weights].bits_per_weight


@dataclass(frozen=True)
class Ffn:
    """A feed-forward network.

    Attributes:
        d_model: width of its input.
        d_ff: number of neurons.
        gated: it has gate_proj, up_proj and down_proj rather than up_proj and down_proj.
        weights: format of the matrices.
        skipped: fraction of neurons whose rows of the later matrices are not read; 0 for a dense FFN. For dReLU only
            gate_proj counts, so it is lower than the activation sparsity (analysis/activation_counts.py).
    """

    d_model: int
    d_ff: int
    gated: bool
    weights: FfnFormat
    skipped: float

    def _matrix_bytes(self, *, is_down: bool) -> float:
        return self.d_model * self.d_ff * bits_per_weight(format_of(self.weights, is_down=is_down)) / 8

    @property
    def streamed_bytes(self) -> float:
        """Bytes of the matrix that is always read: gate_proj, or up_proj of an ungated FFN."""
        return self._matrix_bytes(is_down=False)

    @property
    def skippable_bytes(self) -> float:
        """Bytes of the matrices whose rows are read for active neurons only."""
        return self._matrix_bytes(is_down=True) + (self._matrix_bytes(is_down=False) if self.gated else 0.0)

    @property
    def dense_bytes(self) -> float:
        """Bytes per token with every neuron computed."""
        return self.streamed_bytes + self.skippable_bytes

    @property
    def sparse_bytes(self) -> float:
        """Bytes per token with inactive neurons skipped."""
        return self.streamed_bytes + self.skippable_bytes * (1 - self.skipped)

    @property
    def speedup(self) -> float:
        """Upper bound of the speedup of this FFN: dense bytes over sparse bytes."""
        return self.dense_bytes / self.sparse_bytes


@dataclass(frozen=True)
class Cost:
    """A decode step.

    Attributes:
        sparse_seconds: with inactive neurons skipped.
        dense_seconds: with every neuron computed.
        ffn_share: fraction of the dense step's bytes that the FFNs read.
    """

    sparse_seconds: float
    dense_seconds: float
    ffn_share: float

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense_seconds / self.sparse_seconds


def predict(layers: Sequence[Ffn], other_bytes: float, bandwidth: float, overhead_seconds: float = 0.0) -> Cost:
    """Predict a decode step with a batch of one.

    Args:
        layers: the sparse FFNs.
        other_bytes: everything else that a token reads: attention projections, lm_head, dense FFNs, the KV cache.
        bandwidth: memory bandwidth in bytes per second, with the same number of threads.
        overhead_seconds: time per token that is not spent reading weights: attention's arithmetic, norms, calls.

    Raises:
        ValueError: the bandwidth is not positive.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: expected a positive number of bytes per second, got {bandwidth}")
    dense, sparse = sum(f.dense_bytes for f in layers), sum(f.sparse_bytes for f in layers)
    return Cost(
        sparse_seconds=(sparse + other_bytes) / bandwidth + overhead_seconds,
        dense_seconds=(dense + other_bytes) / bandwidth + overhead_seconds,
        ffn_share=dense / (dense + other_bytes),
    )
