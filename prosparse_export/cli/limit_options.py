"""Options of ``prosparse validate`` that set limits on quality and sparsity."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prosparse_export.validation import Limits

__all__ = ["LimitOptions", "limit_options"]

_OPTIONS = (
    click.option(
        "--max-ppl-increase", metavar="PERCENT", help="Maximum relative increase of perplexity, such as 0.5%."
    ),
    click.option("--min-top1", metavar="PERCENT", help="Minimum top-1 agreement with PyTorch, such as 99%."),
    click.option("--min-top5", metavar="PERCENT", help="Minimum rate of top-1 tokens in PyTorch's top 5."),
    click.option("--max-kl", type=click.FloatRange(min=0), help="Maximum mean KL divergence per token, in nats."),
    click.option(
        "--min-greedy-match", metavar="PERCENT", help="Minimum fraction of greedy tokens before the first difference."
    ),
    click.option(
        "--min-sparsity",
        "sparsities",
        metavar="PERCENT",
        multiple=True,
        help='Minimum activation sparsity: 80% for the mean, "layer 7: 85%" for one layer. Repeatable.',
    ),
    click.option("--limits", "limits_file", type=click.Path(path_type=Path), help="TOML file with limits."),
)
_PERCENTAGES = ("max_ppl_increase", "min_top1", "min_top5", "min_greedy_match")


@dataclass(frozen=True)
class LimitOptions:
    """The limit options as given; a percentage is text such as "0.5%"."""

    max_ppl_increase: str | None
    min_top1: str | None
    min_top5: str | None
    max_kl: float | None
    min_greedy_match: str | None
    sparsities: tuple[str, ...]
    limits_file: Path | None

    def limits(self) -> Limits:
        """Return the limits; options override the file.

        Raises:
            ProSparseError: an option or the file is not a limit.
        """
        from prosparse_export.validation import Limits, parse_share, parse_sparsity, read_limits

        def share(name: str) -> float | None:
            text: str | None = getattr(self, name)
            return None if text is None else parse_share(text, "--" + name.replace("_", "-"))

        shares: dict[str, Any] = {name: share(name) for name in _PERCENTAGES}
        limits = read_limits(self.limits_file) if self.limits_file else Limits()
        return limits.updated(parse_sparsity(self.sparsities)).updated(replace(Limits(max_kl=self.max_kl), **shares))


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limit options to ``command``, which receives them as the argument ``limits``, a `LimitOptions`."""
    names = LimitOptions.__dataclass_fields__

    @functools.wraps(command)
    def gathered(**arguments: Any) -> Any:
        limits = LimitOptions(**{name: arguments.pop(name) for name in names})
        return command(limits=limits, **arguments)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
