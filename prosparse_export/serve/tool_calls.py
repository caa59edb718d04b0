"""Tool calls in a text: JSON between ``<tool_call>`` and ``</tool_call>``, as models of the Hermes and Qwen kind write.

Source: NousResearch's Hermes function calling format; OpenAI's API reference, "The chat completion object".
"""

from __future__ import annotations

import json
import uuid
from typing import Any, TypeAlias

from prosparse_export.runtime.detokenizer import partial_match

__all__ = ["BEGIN", "END", "Call", "CallSplitter", "for_template"]

BEGIN, END = "<tool_call>", "</tool_call>"
Call: TypeAlias = dict[str, Any]
"""A call in the format of OpenAI's API: id, type, and function with name and arguments."""


class CallSplitter:
    """Separates a text, as it arrives, into text and calls.

    A call is told when it is complete, since only then it is known to be one: what cannot be read as a call stays text.
    Whitespace before a call is dropped, and around calls without text.

    Attributes:
        calls: number of calls so far.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""  # it may become a call
        self._space = ""  # it is text, unless a call follows
        self._told = False

    def add(self, text: str) -> list[str | Call]:
        """Return what is certain now: pieces of text, none of them empty, and calls."""
        self._held += text
        found: list[str | Call] = []
        while self._held:
            if not self._held.startswith(BEGIN):
                at = self._held.find(BEGIN)
                at = partial_match(self._held, BEGIN) if at < 0 else at
                found += self._text(self._take(at))
                if not self._held.startswith(BEGIN):
                    break
            end = self._held.find(END)
            if end < 0:
                break
            part = self._take(end + len(END))
            call = _call(part[len(BEGIN) : -len(END)])
            if call is None:
                found += self._text(part)
                continue
            self.calls, self._space = self.calls + 1, ""
            found.append(call)
        return found

    def end(self) -> list[str]:
        """Return the rest, which is no call."""
        rest = self._text(self._take(len(self._held)))
        space, self._space = self._space, ""
        return rest + [space] * bool(space and (self._told or not self.calls))

    def _take(self, length: int) -> str:
        part, self._held = self._held[:length], self._held[length:]
        return part

    def _text(self, text: str) -> list[str]:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if self.calls and not self._told:
            body = body.lstrip()
        self._told |= bool(body)
        return [body] * bool(body)


def for_template(calls: Any) -> Any:
    """Return a message's calls with arguments as objects: clients send JSON in a string, templates expect the object.

    Whatever is not like that stays as it is: the template decides.
    """
    if not isinstance(calls, list):
        return calls
    return [_with_object(call) for call in calls]


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        value = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call


def _call(text: str) -> Call | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        return None
    function = {"name": value["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
