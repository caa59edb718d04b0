"""Limits on quality and sparsity, from options or a TOML file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from prosparse_export.errors import ProSparseError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Limits", "parse_share", "parse_sparsity", "read_limits"]

_LAYER = re.compile(r"layer\s+(\d+)\s*:\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Limits on the artifact with the library, against PyTorch with the checkpoint's own weights.

    None is no limit; shares are 0 to 1. Exactness against the *stored* weights is always checked and has no limit here.

    Attributes:
        max_ppl_increase: relative increase of perplexity.
        min_top1: fraction of positions with PyTorch's top-1 token.
        min_top5: fraction of positions whose top-1 token is among PyTorch's top 5.
        max_kl: mean KL divergence per position, nats.
        min_sparsity: activation sparsity at down_proj's input, mean over layers.
        min_sparsity_by_layer: the same by layer number.
        min_greedy_match: fraction of greedy tokens before the first difference, mean over prompts.
    """

    max_ppl_increase: float | None = None
    min_top1: float | None = None
    min_top5: float | None = None
    max_kl: float | None = None
    min_sparsity: float | None = None
    min_sparsity_by_layer: Mapping[int, float] = field(default_factory=dict)
    min_greedy_match: float | None = None

    def updated(self, other: Limits) -> Limits:
        """Return these limits, overridden by those set in ``other``."""
        given = {f.name: v for f in fields(other) if (v := getattr(other, f.name)) is not None}
        layers = {**self.min_sparsity_by_layer, **other.min_sparsity_by_layer}
        return replace(self, **{**given, "min_sparsity_by_layer": layers})


def parse_share(text: str | float, where: str) -> float:
    """Return a fraction written as "0.5%" or 0.005.

    Raises:
        ProSparseError: ``text`` is not a fraction between 0 and 100%.
    """
    try:
        if isinstance(text, bool):
            raise ValueError
        number = float(text.strip().removesuffix("%")) if isinstance(text, str) else float(text)
    except (ValueError, AttributeError):
        raise ProSparseError(
            f"limits: {where}: expected a percentage such as 99.5% (or 0.995), got {text!r}", hint="for example 80%"
        ) from None
    share = number / 100 if isinstance(text, str) and text.strip().endswith("%") else number
    if not 0 <= share <= 1:
        hint = f"add a % sign: {number:g}%" if 1 < share == number <= 100 else "for example 80% (or 0.8)"
        raise ProSparseError(f"limits: {where}: expected 0% to 100% (or 0 to 1), got {text!r}", hint=hint)
    return share


def parse_sparsity(texts: Iterable[str]) -> Limits:
    """Return the limits written as "80%" or "layer 7: 85%".

    Raises:
        ProSparseError: a text is neither.
    """
    total: float | None = None
    layers: dict[int, float] = {}
    for text in texts:
        match = _LAYER.fullmatch(text.strip())
        if match:
            layers[int(match[1])] = parse_share(match[2], "min-sparsity")
        else:
            total = parse_share(text, "min-sparsity")
    return Limits(min_sparsity=total, min_sparsity_by_layer=layers)


def read_limits(path: Path) -> Limits:
    """Return the limits in a TOML file.

    Keys are the names of `Limits`; ``min_sparsity_by_layer`` is a table of layer numbers and fractions.

    Raises:
        ProSparseError: the file cannot be read or has an unknown key.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProSparseError(f"limits: {path}: cannot be read: {error.strerror}", hint="check the path") from error
    except ValueError as error:
        raise ProSparseError(
            f"limits: {path}: expected TOML, got: {error}", hint="docs/guides/validate.md has an example"
        ) from error
    known = {f.name for f in fields(Limits)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ProSparseError(
            f"limits: {path}: unknown key {', '.join(map(repr, unknown))}",
            hint=f"known keys: {', '.join(sorted(known))}",
        )
    layers = values.pop("min_sparsity_by_layer", {})
    if not isinstance(layers, dict) or not all(str(key).isdecimal() for key in layers):
        raise ProSparseError(
            f"limits: {path}: min_sparsity_by_layer: expected a table of layer numbers, got {layers!r}",
            hint='for example [min_sparsity_by_layer], and on the next line 7 = "85%"',
        )
    parsed = {key: _number(path, key, value) for key, value in values.items()}
    shares = {int(key): parse_share(value, f"{path}: layer {key}") for key, value in layers.items()}
    return Limits(**parsed, min_sparsity_by_layer=shares)


def _number(path: Path, key: str, value: Any) -> float:
    if key == "max_kl":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ProSparseError(f"limits: {path}: max_kl: expected a number >= 0, got {value!r}", hint="unit: nats")
        return float(value)
    return parse_share(value, f"{path}: {key}")
