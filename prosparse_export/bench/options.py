"""Options of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WARMUP", "BenchOptions"]

WARMUP = 2  # decode rounds that are not counted


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        threads: intra-op threads; None for one per physical core.
        context: tokens in the KV cache when decode begins.
        tokens: tokens decoded per round.
        prefill: prompt lengths.
        rounds: decode rounds that are counted; prefill and the decode loop take half as many, and at least 3.
        dense: also run the dense baseline, which loads the weights a second time.
    """

    threads: int | None = None
    context: int = 128
    tokens: int = 16
    prefill: tuple[int, ...] = (16, 128, 512)
    rounds: int = 9
    dense: bool = True

    @property
    def fewer_rounds(self) -> int:
        """Rounds of prefill and of the decode loop."""
        return max(3, self.rounds // 2)

    @property
    def longest(self) -> int:
        """The context length in tokens that the measurement needs."""
        return max(self.context + self.tokens * (self.rounds + WARMUP), *self.prefill)
