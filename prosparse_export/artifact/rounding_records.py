"""The sections of prosparse.json about rounding: weights in integers, the KV cache in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FormatCost", "KvCacheRecord", "RoundingRecord"]


@dataclass(frozen=True)
class KvCacheRecord:
    """A KV cache in 8 bits (``--kv-cache i8`` or ``i8-token``).

    Attributes:
        format: i8, or i8-token.
        scale_per: ``channel`` of every KV head, or ``tensor``: one for a layer's keys, one for its values; ``token``:
            one per token, KV head and 32 values, in the cache.
        layers: number of layers.
        texts: SHA-256 of the token ids of each text that the scales were found on, by name; empty for random tokens.
        tokens: their number; 0 for i8-token.
    """

    format: Literal["i8", "i8-token"]
    scale_per: Literal["channel", "tensor", "token"]
    layers: int
    texts: dict[str, str]
    tokens: int


@dataclass(frozen=True)
class FormatCost:
    """What ``--target-size`` or ``--max-ppl-increase`` measured for a part of the model.

    Attributes:
        part: such as ``v_proj, layers 0 to 7``.
        kl: mean KL divergence per token with this part alone in 4 bits, nats.
        bytes: what i8 takes more than 4 bits.
        format: the choice.
    """

    part: str
    kl: float
    bytes: int
    format: str


@dataclass(frozen=True)
class RoundingRecord:
    """What the scales and formats of integer matrices were chosen on.

    Attributes:
        texts: SHA-256 of the token ids of each text, by name.
        tokens: tokens that the inputs' mean squares were measured on; 0 if all errors weigh the same.
        compensated: module paths of the matrices whose columns make up for each other's rounding errors; all others
            are rounded to nearest.
        costs: what a budget for size or perplexity was spent on, most worthwhile first.
    """

    texts: dict[str, str]
    tokens: int
    compensated: tuple[str, ...] = ()
    costs: tuple[FormatCost, ...] = ()
