"""Options for sampling that every command has which generates text in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["sampling_options"]

_OPTIONS = (
    click.option(
        "--temperature", type=click.FloatRange(min=0.0), default=0.0, show_default=True, help="0 means greedy decoding."
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Sample from the top k tokens; 0 disables.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        default=1.0,
        show_default=True,
        help="Nucleus sampling.",
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Random seed for sampling."),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--temperature``, ``--top-k``, ``--top-p``, and ``--seed`` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
