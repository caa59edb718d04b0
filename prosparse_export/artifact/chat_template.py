"""Chat templates: Jinja programs next to a tokenizer that write a conversation as a prompt.

A template comes with the model, so it runs in jinja2's immutable sandbox, without a loader: it reads no files and
imports nothing. The environment has what transformers' has (``raise_exception``, ``strftime_now``, ``tojson``, loop
controls, ``{% generation %}``).

Source: transformers' "Chat templates" documentation; chat_template.jinja, or chat_template of tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prosparse_export.artifact.model_settings import read_settings
from prosparse_export.errors import ProSparseError

__all__ = ["ChatTemplate", "ChatTemplateError", "read_chat_template", "require_chat_template"]

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


class ChatTemplateError(ProSparseError):
    """A template is missing, or it refuses a conversation."""


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class ChatTemplate:
    """A template, compiled.

    Args:
        source: Jinja source.
        tokens: texts of special tokens by name, such as ``bos_token``.
        file: where it is, for error messages.

    Raises:
        ChatTemplateError: the source is no Jinja template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], file: Path) -> None:
        self.file = file
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.globals |= dict(tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise self._failed(error) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None, **values: Any
    ) -> str:
        """Return the prompt that asks for the next message of the assistant.

        Args:
            messages: with ``role`` and ``content``.
            tools: functions that the assistant may call, in the format of OpenAI's API.
            values: more variables of the template.

        Raises:
            ChatTemplateError: the template refuses the conversation or fails.
        """
        try:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=True, **values)
        except Exception as error:  # a template is a program: it can raise anything
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ChatTemplateError:
        return ChatTemplateError(
            f"chat template: {self.file}: {' '.join(str(error).split()) or type(error).__name__}",
            hint="check the roles and their order against the template, or pass another one with --chat-template",
        )


def read_chat_template(folder: Path, path: Path | None = None, *, name: str = "default") -> ChatTemplate | None:
    """Return the template of a tokenizer's folder, or None if it has none.

    Args:
        folder: has chat_template.jinja or tokenizer_config.json.
        path: a template to use instead of the folder's.
        name: which one, if tokenizer_config.json has several.

    Raises:
        ProSparseError: a file is damaged or not a template.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    tokens = {key: _text(settings[key]) for key in _TOKENS if settings.get(key) is not None}
    for file in (path,) if path is not None else (folder / "chat_template.jinja",):
        if file.is_file():
            return ChatTemplate(_read(file), tokens, file)
        if path is not None:
            raise ChatTemplateError(f"chat template: {file}: no such file", hint="check the path")
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get(name, named.get("default"))
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, tokens, folder / "tokenizer_config.json")


def require_chat_template(folder: Path, path: Path | None = None) -> ChatTemplate:
    """Return what `read_chat_template` returns.

    Raises:
        ProSparseError: there is no template, or as for `read_chat_template`.
    """
    template = read_chat_template(folder, path)
    if template is None:
        raise ChatTemplateError(
            f"chat template: {folder}: expected chat_template.jinja or chat_template in tokenizer_config.json",
            hint="pass one with --chat-template, or use prosparse generate",
        )
    return template


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ChatTemplateError(
            f"chat template: {path}: expected a text file in UTF-8, got: {error}", hint="check the file"
        ) from error


def _text(token: Any) -> str:
    """Return a special token's text; tokenizer_config.json has it as a string or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """JSON as transformers writes it: no escapes for HTML or for characters beyond ASCII."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)
