"""Tool calls in chat completions, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.http_service import Texts, client_of, make_service

from prosparse_export.serve.job import Done, FinishReason, Piece, TokenLogprobs
from prosparse_export.serve.tool_calls import Call, CallSplitter, for_template

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'
PROBABILITY = TokenLogprobs((1, -0.5), ())
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


def split(text: str, size: int = 10**6) -> tuple[str, list[Call]]:
    """The text, joined, and the calls of a text that arrives in pieces."""
    splitter = CallSplitter()
    parts = [part for at in range(0, len(text), size) for part in splitter.add(text[at : at + size])]
    parts += splitter.end()
    assert all(parts)
    calls = [part for part in parts if isinstance(part, dict)]
    assert splitter.calls == len(calls)
    return "".join(part for part in parts if isinstance(part, str)), calls


@pytest.mark.parametrize("size", [1, 2, 7, 11, 10**6])
@pytest.mark.parametrize(
    ("text", "content", "count"),
    [
        (f"I look.\n{CALL}\n{CALL}", "I look.", 2),
        (f"  {CALL}\n\n{CALL}\n", "", 2),
        (f"\n{CALL} then {CALL}  .", "then  .", 2),
        (" I say <b> \n", " I say <b> \n", 0),
        (f"<tool_{CALL}<tool_call", "<tool_<tool_call", 1),
        ("<tool_call>a</tool_call> \n" + CALL, "<tool_call>a</tool_call>", 1),
        (f"{CALL}\n<tool_call>{{", "<tool_call>{", 1),
    ],
)
def test_text_and_calls(text: str, content: str, count: int, size: int) -> None:
    found, calls = split(text, size)
    assert (found, len(calls)) == (content, count)
    assert len({call["id"] for call in calls}) == count


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    splitter = CallSplitter()
    assert splitter.add("I look. <to") == ["I look."]
    assert splitter.add("ols> \n") == [" <tools>"]
    assert splitter.add(CALL[:-1]) == []
    assert len(splitter.add(">")) == 1


def test_arguments_that_are_text_already_or_missing() -> None:
    _, (call,) = split('<tool_call>{"name": "a", "arguments": "{\\"b\\": 1}"}</tool_call>')
    assert call["function"]["arguments"] == '{"b": 1}'
    _, (call,) = split('<tool_call>{"name": "a"}</tool_call>')
    assert call["function"]["arguments"] == "{}"


@pytest.mark.parametrize("inner", ["{", "[]", "5", '{"name": 5}', '{"name": "a", "arguments": 5}', "[" * 100_000])
def test_calls_that_cannot_be_read_stay_text(inner: str) -> None:
    text = f"<tool_call>{inner}</tool_call>"
    assert split(text) == (text, [])
    found, calls = split(text + CALL + text)
    assert (found, len(calls)) == (text + text, 1)


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


def stream(text: str, reason: FinishReason = "stop") -> list[Any]:
    lines = ask(text, reason, stream=True).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]


def test_a_stream_of_text_and_calls() -> None:
    choices = stream(f"So:\n{CALL}\n{CALL}")
    deltas = [choice["delta"] for choice in choices]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(delta.get("content", "") for delta in deltas) == "So:"
    assert [call["index"] for call in calls] == [0, 1]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Zürich", "days": 2}
    assert calls[0]["id"] != calls[1]["id"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


def test_a_stream_that_ends_in_a_call() -> None:
    choices = stream(CALL[:-5], "length")
    assert "".join(choice["delta"].get("content", "") for choice in choices) == CALL[:-5]
    assert choices[-1]["finish_reason"] == "length"


def test_log_probabilities_of_a_call() -> None:
    texts = Texts()
    texts.events = [Piece(CALL[:20], PROBABILITY), Piece(CALL[20:] + " So", PROBABILITY), Done("stop", 2, 0)]
    request = {"model": "words", "messages": [{"role": "user", "content": "one"}], "tools": TOOLS, "logprobs": True}
    answer = client_of(make_service(texts)).post("/v1/chat/completions", json={**request, "stream": True})
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.strip().split("\n\n")[:-1]]
    told = [len((chunk["choices"][0]["logprobs"] or {"content": []})["content"]) for chunk in chunks]
    assert told == [0, 1, 1, 0, 0]  # begin, a token without text, a call and text of one token, end


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
