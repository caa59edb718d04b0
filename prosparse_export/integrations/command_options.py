"""Options of a command of ours, as another tool's configuration gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

__all__ = ["command_options", "option_words"]


def command_options(command: click.Command) -> Iterator[click.Option]:
    """Yield the options of ``command``, without --help."""
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "help":
            yield option


def option_words(command: click.Command, values: Mapping[str, object]) -> list[str]:
    """Return ``values``, by option name, as words of the command line of ``command``; None and False: not given."""
    words: list[str] = []
    for option in command_options(command):
        value = values.get(option.name or "")
        if value is None or value is False:
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [option.opts[-1]] if option.is_flag else [option.opts[-1], str(one)]
    return words
