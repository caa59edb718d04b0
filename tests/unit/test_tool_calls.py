"""Tool calls in whole chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.http_service import Texts, client_of, make_service

from prosparse_export.serve.job import Done, FinishReason, Piece
from prosparse_export.serve.tool_calls import for_template, split_tool_calls

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def ask(text: str, reason: FinishReason = "stop", **fields: Any) -> Any:
    texts = Texts()
    texts.events = [Piece(text[:9]), Piece(text[9:]), Done(reason, 9, 0)]
    request = {"model": "words", "messages": [{"role": "user", "content": "one"}], "tools": TOOLS, **fields}
    answer = client_of(make_service(texts)).post("/v1/chat/completions", json=request)
    assert answer.status_code == 200, answer.text
    return answer if fields.get("stream") else answer.json()["choices"][0]


def test_a_call() -> None:
    choice = ask(CALL)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == {"city": "Zürich", "days": 2}


def test_text_and_two_calls() -> None:
    content, calls = split_tool_calls(f"I look.\n{CALL}\n{CALL}")
    assert content == "I look."
    assert len({call["id"] for call in calls}) == 2


def test_arguments_that_are_text_already_or_missing() -> None:
    _, (call,) = split_tool_calls('<tool_call>{"name": "a", "arguments": "{\\"b\\": 1}"}</tool_call>')
    assert call["function"]["arguments"] == '{"b": 1}'
    _, (call,) = split_tool_calls('<tool_call>{"name": "a"}</tool_call>')
    assert call["function"]["arguments"] == "{}"


@pytest.mark.parametrize("inner", ["{", "[]", "5", '{"name": 5}', '{"name": "a", "arguments": 5}', "[" * 100_000])
def test_calls_that_cannot_be_read_stay_text(inner: str) -> None:
    text = f"<tool_call>{inner}</tool_call>"
    assert split_tool_calls(text) == (text, [])
    assert split_tool_calls(CALL + text) == (CALL + text, [])


def test_an_unfinished_call_stays_text() -> None:
    choice = ask(CALL[:-5], "length")
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == CALL[:-5]
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("fields", [{"tools": None}, {"tools": []}, {"tool_choice": "none"}])
def test_without_tools_nothing_is_parsed(fields: dict[str, Any]) -> None:
    choice = ask(CALL, **fields)
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


def test_a_stream_has_the_text() -> None:
    lines = ask(CALL, stream=True).text.strip().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == CALL


def test_calls_and_their_results_reach_the_template() -> None:
    texts = Texts()
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.tool_calls | length }} {% endfor %}"
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {}}]},
        {"role": "tool", "content": "two", "tool_call_id": "a"},
    ]
    request = {"model": "words", "messages": messages, "tools": TOOLS}
    answer = client_of(make_service(texts, template=template)).post("/v1/chat/completions", json=request)
    assert answer.status_code == 200, answer.text
    assert 2 in list(texts.jobs[0].ids)


def test_arguments_in_a_conversation_become_objects() -> None:
    template = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.n }}{% endfor %}"
    texts = Texts()
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"n": "three"}'}}
    request = {"model": "words", "messages": [{"role": "assistant", "tool_calls": [call]}], "tools": TOOLS}
    answer = client_of(make_service(texts, template=template)).post("/v1/chat/completions", json=request)
    assert answer.status_code == 200, answer.text
    assert list(texts.jobs[0].ids) == [3]


OTHER = [5, {}, {"function": 5}, *({"function": {"arguments": value}} for value in ("{", "[1]", {"n": 1}))]


@pytest.mark.parametrize("calls", [None, 5, *([call] for call in OTHER)], ids=str)
def test_other_calls_stay_as_they_are(calls: object) -> None:
    assert for_template(calls) == calls
