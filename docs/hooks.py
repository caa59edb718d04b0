"""Hooks of mkdocs: the command reference, written from the click commands themselves."""

from __future__ import annotations

from typing import Any

import click

_PLACE = "<!-- command reference -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(_PLACE, _reference()) if _PLACE in markdown else markdown


def _reference() -> str:
    from prosparse_export.cli import main

    context = click.Context(main, info_name="prosparse")
    return "\n".join(_command(command, name, context) for name, command in sorted(main.commands.items()))


def _command(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## prosparse {name}", f"```console\n$ prosparse {name} {usage}\n```", _prose(command.help or "")]
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            rows.append(f"| {_option(record[0])} | {_cell(record[1])} |")
    parts.append("\n".join(["| option | |", "| --- | --- |", *rows]))
    examples = (command.epilog or "").replace("\b", "").partition("Examples:")[2]
    if examples:
        example, _, rest = examples.strip("\n").partition("\n\n")
        lines = "\n".join(line.strip() for line in example.splitlines())
        parts += [f"Examples:\n\n```shell\n{lines}\n```", _prose(rest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _prose(text: str) -> str:
    return "\n".join(line.strip() for line in text.replace("\b", "").strip().splitlines())


def _option(text: str) -> str:
    """Names as code, and what they take in plain text, so that long choices wrap."""
    parts = []
    for part in text.split(", "):
        name, _, taken = part.partition(" ")
        names = " / ".join(f"`{one}`" for one in part.split(" / ")) if taken.startswith("/ ") else f"`{name}`"
        parts.append(names if taken.startswith("/ ") or not taken else f"{names} {_cell(taken.replace('|', ' | '))}")
    return ", ".join(parts)


def _cell(text: str) -> str:
    text = " ".join(text.split())
    for special, written in (("|", "&#124;"), ("<", "&lt;"), ("[", "\\["), ("*", "\\*")):
        text = text.replace(special, written)
    return text
