"""What a token costs where reading weights is all that counts: bytes over bandwidth.

A decode step reads every weight of the model once, but of a sparse block's up_proj and down_proj only the rows of the
active neurons. So with a share a = 1 - sparsity of active neurons a gated block of one format reads (1 + 2a) / 3 of its
bytes, one without a gate (1 + a) / 2. Everything else is read in full. docs/guides/run.md: how well that predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graph_passes import FfnFormat, Format, format_of

__all__ = ["Cost", "Ffn", "bits_per_weight", "predict"]

_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "i8": 8.0 + 16 / 32, "i4": 4.0 + 16 / 32}


def bits_per_weight(weights: Format) -> float:
    """Return the bits of a stored weight, with its share of the block's scale (f16, one for 32 weights)."""
    return _BITS[weights]


@dataclass(frozen=True)
class Ffn:
    """A feed-forward block.

    Attributes:
        d_model: width of its input.
        d_ff: neurons.
        gated: gate_proj, up_proj and down_proj; without, up_proj and down_proj.
        weights: format of the matrices.
        sparsity: share of exact zeros at down_proj's input; 0 for a block that runs densely.
    """

    d_model: int
    d_ff: int
    gated: bool
    weights: FfnFormat
    sparsity: float

    def _matrix_bytes(self, *, is_down: bool) -> float:
        return self.d_model * self.d_ff * bits_per_weight(format_of(self.weights, is_down=is_down)) / 8

    @property
    def streamed_bytes(self) -> float:
        """Bytes of the matrix that is always read: gate_proj, or up_proj where there is no gate."""
        return self._matrix_bytes(is_down=False)

    @property
    def skippable_bytes(self) -> float:
        """Bytes of the matrices of which inactive neurons' rows are skipped."""
        return self._matrix_bytes(is_down=True) + (self._matrix_bytes(is_down=False) if self.gated else 0.0)

    @property
    def dense_bytes(self) -> float:
        """Bytes that a token reads if every neuron is computed."""
        return self.streamed_bytes + self.skippable_bytes

    @property
    def sparse_bytes(self) -> float:
        """Bytes that a token reads if only active neurons are."""
        return self.streamed_bytes + self.skippable_bytes * (1 - self.sparsity)

    @property
    def speedup(self) -> float:
        """The most that skipping can gain in this block: its dense bytes over its sparse bytes."""
        return self.dense_bytes / self.sparse_bytes


@dataclass(frozen=True)
class Cost:
    """A decode step.

    Attributes:
        sparse_seconds: with inactive neurons skipped.
        dense_seconds: with every neuron computed.
        ffn_share: of the dense step's bytes, those of the feed-forward blocks.
    """

    sparse_seconds: float
    dense_seconds: float
    ffn_share: float

    @property
    def speedup(self) -> float:
        """Dense over sparse."""
        return self.dense_seconds / self.sparse_seconds


def predict(layers: Sequence[Ffn], other_bytes: float, bandwidth: float, overhead_seconds: float = 0.0) -> Cost:
    """Predict a decode step of one row.

    Args:
        layers: the sparse blocks.
        other_bytes: what else a token reads: projections, lm_head, dense blocks, the KV cache.
        bandwidth: bytes per second that the machine streams with the threads at hand.
        overhead_seconds: per token, for what is not reading: attention's arithmetic, norms, calls.

    Raises:
        ValueError: the bandwidth is not above 0.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: expected bytes per second above 0, got {bandwidth}")
    dense, sparse = sum(f.dense_bytes for f in layers), sum(f.sparse_bytes for f in layers)
    return Cost(
        sparse_seconds=(sparse + other_bytes) / bandwidth + overhead_seconds,
        dense_seconds=(dense + other_bytes) / bandwidth + overhead_seconds,
        ffn_share=dense / (dense + other_bytes),
    )
