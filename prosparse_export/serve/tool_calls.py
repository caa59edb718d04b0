"""Tool calls in a text: JSON between ``<tool_call>`` and ``</tool_call>``, as models of the Hermes and Qwen kind write.

Source: NousResearch's Hermes function calling format; OpenAI's API reference, "The chat completion object".
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

__all__ = ["for_template", "split_tool_calls"]

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def split_tool_calls(text: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Return the text around the calls (None if there is none), and the calls as OpenAI's interface has them.

    A text with a call that cannot be read is returned whole, without calls: the client sees what the model wrote.
    """
    calls = [_call(found) for found in _CALL.findall(text)]
    read = [call for call in calls if call is not None]
    if not read or len(read) < len(calls):
        return text, []
    return _CALL.sub("", text).strip() or None, read


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


def _call(text: str) -> dict[str, Any] | None:
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
