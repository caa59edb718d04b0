"""The grammar of answers that call tools, for llguidance.

A call is written as models of the Hermes and Qwen kind write it; `tool_calls` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prosparse_export.serve.grammar import json_rule
from prosparse_export.serve.tool_calls import BEGIN, END
from prosparse_export.serve.tool_schema import Tool, ToolChoice

__all__ = ["tool_grammar"]

_ANY = {"type": "object"}


def tool_grammar(
    tools: Sequence[Tool], choice: ToolChoice | None, *, parallel: bool, answer: Mapping[str, Any] | None
) -> str | None:
    """Return the Lark grammar of an answer, or None if any text may be one.

    Args:
        tools: at least one.
        choice: as in the request, but not "none".
        parallel: whether an answer may have several calls.
        answer: the JSON schema of an answer without calls, or None for any text.
    """
    if choice is not None and choice != "auto":
        named = None if isinstance(choice, str) else choice.function.name
        wanted = [tool for tool in tools if named in (None, tool.function.name)]
        several = parallel and named is None
        return _grammar(_calls(several), "", [_rule(tool, tool.function.schema_) for tool in wanted])
    if answer is not None:
        rules = [_rule(tool, tool.function.schema_) for tool in tools]
        return _grammar(f"{_calls(parallel)} | answer", f"answer: {json_rule(answer)}\n", rules)
    if parallel and not any(tool.function.strict for tool in tools):
        return None
    # Without strict, OpenAI's API promises nothing: a schema that cannot be compiled is no error
    rules = [_rule(tool, tool.function.schema_ if tool.function.strict else _ANY) for tool in tools]
    text = f"TEXT: /(.|\\n)*/\nhead[lazy]: TEXT {json.dumps(BEGIN)}\n"
    return _grammar("call* TEXT" if parallel else "call | TEXT", text, rules, head="head")


def _calls(several: bool) -> str:
    return 'call ("\\n" call)*' if several else "call"


def _grammar(start: str, rules: str, tools: Sequence[str], head: str = json.dumps(BEGIN)) -> str:
    names = " | ".join(f"tool_{number}" for number in range(len(tools)))
    call = f'call: {head} "\\n" ({names}) {json.dumps(chr(10) + END)}\n'
    numbered = "".join(f"tool_{number}: {rule}\n" for number, rule in enumerate(tools))
    return f"start: {start}\n{rules}{call}{numbered}"


def _rule(tool: Tool, schema: Mapping[str, Any]) -> str:
    """Return a call's JSON. The schema is a part of its own, so that its references stay right."""
    begin = f'{{"name": {json.dumps(tool.function.name)}, "arguments": '
    return f'{json.dumps(begin)} {json_rule(schema, item_separator=", ", key_separator=": ")} "}}"'
