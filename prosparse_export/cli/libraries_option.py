"""``--libraries``, as export and optimize have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["libraries_option"]


def libraries_option() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option; its value is `prosparse_export.runtime.installed_libraries.choose_libraries`'s argument."""
    return click.option(
        "--libraries",
        default="all",
        show_default=True,
        metavar="all|this|none|PLATFORM,...",
        help="Operator libraries to copy into lib/PLATFORM/ next to the graph: those of all installed platforms, this "
        "one's, none, or a list, for example linux-x86_64,windows-x86_64.",
    )
