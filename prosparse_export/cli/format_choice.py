"""Options that take a weight format."""

from __future__ import annotations

import click

__all__ = ["FormatChoice"]


class FormatChoice(click.Choice):  # type: ignore[type-arg]
    """A choice of the weight formats and ``default``.

    The formats are looked up on use: their module imports numpy.

    Args:
        default: the choice that leaves the format to the command.
        ffn: offer the formats of FFNs, which include i4i8, instead of those of single matrices.
    """

    def __init__(self, default: str, *, ffn: bool) -> None:
        self._default = default
        self._ffn = ffn
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The accepted values."""
        from graph_passes import FFN_FORMATS, FORMATS

        return (self._default, *(FFN_FORMATS if self._ffn else FORMATS))
