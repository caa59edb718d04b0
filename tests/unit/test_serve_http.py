"""The server's HTTP modules on a service without a model: answers, and an error object for every bad request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.http_service import Texts, client_of, make_service

from prosparse_export.errors import ProSparseError
from prosparse_export.serve.app import create_app
from prosparse_export.serve.job import Done, Failed, Piece

PROMPT = {"model": "words", "prompt": "one two"}
CHAT: dict[str, Any] = {"model": "words", "messages": [{"role": "user", "content": "one"}]}
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@pytest.fixture
def texts() -> Texts:
    return Texts()


@pytest.fixture
def client(texts: Texts) -> TestClient:
    return client_of(make_service(texts))


def check_error(answer: Any, status: int, code: str | None, param: str | None = None) -> str:
    """Check the error object and return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    message: str = error["message"]
    assert message
    return message


def test_a_completion(client: TestClient, texts: Texts) -> None:
    body = client.post("/v1/completions", json={**PROMPT, "logprobs": 2, "seed": 2**70, "top_k": 10**30}).json()
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == ("one two", "stop", 0)
    assert choice["logprobs"]["token_logprobs"] == [-0.5, -0.5]
    usage = {key: body["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    (job,) = texts.jobs
    assert (list(job.ids), job.max_tokens) == ([1, 2], 16)  # OpenAI's default for a completion
    assert job.cancelled  # whatever still ran for it would be in vain


def test_a_chat(client: TestClient, texts: Texts) -> None:
    body = client.post("/v1/chat/completions", json={**CHAT, "n": 2, "logprobs": True, "top_logprobs": 1}).json()
    assert body["object"] == "chat.completion"
    assert [choice["message"]["content"] for choice in body["choices"]] == ["one two"] * 2
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert len(body["choices"][0]["logprobs"]["content"]) == 2
    assert body["usage"]["completion_tokens"] == 6
    assert texts.jobs[0].max_tokens == 31  # as many as fit into the context of 32


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream(client: TestClient, chat: bool) -> None:
    path, request = ("chat/completions", CHAT) if chat else ("completions", PROMPT)
    answer = client.post(f"/v1/{path}", json={**request, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
    assert last == "[DONE]"
    *chunks, usage = map(json.loads, lines)
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["choices"] == []
    pieces = [chunk["choices"][0]["delta"].get("content", "") if chat else chunk["choices"][0]["text"]
              for chunk in chunks]  # fmt: skip
    assert "".join(pieces) == "one two"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_a_text_that_fails(client: TestClient, texts: Texts) -> None:
    texts.events = [Piece("one"), Failed(ProSparseError("deadline: 5 s are over", hint="ask for less"), 408)]
    assert "deadline" in check_error(client.post("/v1/completions", json=PROMPT), 408, None)
    answer = client.post("/v1/completions", json={**PROMPT, "stream": True})
    assert answer.status_code == 200  # it had begun: the error is the stream's last event
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "invalid_request_error"


BAD_COMPLETIONS: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({"colour": 1}, "unknown_parameter", "colour"),
    ({"stream_options": {"colour": 1}}, "unknown_parameter", "stream_options.colour"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_value", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_value", "max_tokens"),
    ({"max_tokens": 31}, "context_length_exceeded", "max_tokens"),
    ({"max_tokens": 10**40}, "context_length_exceeded", "max_tokens"),
    ({"n": -1}, "invalid_value", "n"),
    ({"n": 129}, "invalid_value", "n"),
    ({"n": 9}, "too_many_sequences", "n"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": -1}, "invalid_value", "top_p"),
    ({"top_k": -1}, "invalid_value", "top_k"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"logprobs": -1}, "invalid_value", "logprobs"),
    ({"logprobs": True}, "invalid_value", "logprobs"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": ["a"] * 17}, "invalid_value", "stop"),
    ({"echo": True}, "invalid_value", "echo"),
    ({"presence_penalty": 0.5}, "invalid_value", "presence_penalty"),
    ({"logit_bias": {"1": 2}}, "invalid_value", "logit_bias"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": " "}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": [-1]}, "invalid_value", "prompt"),
    ({"prompt": [4]}, "invalid_value", "prompt"),
    ({"prompt": [10**40]}, "invalid_value", "prompt"),
    ({"prompt": "one " * 32}, "context_length_exceeded", "prompt"),
    ({"prompt": "one " * 1000}, "context_length_exceeded", "prompt"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_COMPLETIONS, ids=str)
def test_bad_completions(
    client: TestClient, texts: Texts, fields: dict[str, Any], code: str | None, param: str | None
) -> None:
    check_error(client.post("/v1/completions", json={**PROMPT, **fields}), 400, code, param)
    assert not texts.jobs


TOLD: list[tuple[dict[str, Any], str]] = [
    ({"frequency_penalty": 0.5}, "frequency_penalty: not supported; only 0 is accepted"),
    ({"logit_bias": {"1": 2}}, "logit_bias: not supported; only {} is accepted"),
    ({"echo": True}, "echo: not supported; only false is accepted"),
    ({"suffix": "one"}, 'suffix: not supported; only "" is accepted'),
    ({"prompt": ""}, "prompt: must not be empty"),
    ({"stop": ""}, "stop: must not be empty"),
    ({"response_format": {"type": "json_schema"}}, "response_format: type json_schema requires the field json_schema"),
    ({"max_tokens": 31}, "The context length is 32 tokens, but the request needs 33 (2 prompt + 31 completion)"),
]


@pytest.mark.parametrize(("fields", "message"), TOLD, ids=str)
def test_what_is_told(client: TestClient, fields: dict[str, Any], message: str) -> None:
    answer = client.post("/v1/completions", json={**PROMPT, **fields})
    assert answer.json()["error"]["message"] == message


TEXT, IMAGE = {"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:,"}}
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_CHATS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages.0.content"),
    ({"messages": [{"content": "one"}]}, "invalid_value", "messages.0.role"),
    ({"messages": [{"role": "judge", "content": "one"}]}, "chat_template_failed", None),
    ({"chat_template_kwargs": {"zero": 0}}, "chat_template_failed", None),
    ({"chat_template_kwargs": {"messages": []}}, "invalid_value", "chat_template_kwargs"),
    ({"chat_template_kwargs": {"self": 1}}, "invalid_value", "chat_template_kwargs"),
    ({"messages": [{"role": "user", "content": [TEXT, IMAGE]}]}, "unsupported_content", "messages.0.content.1"),
    ({"messages": [{"role": "user", "content": [TEXT, {"type": "shout"}]}]}, "invalid_value", "messages.0.content"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tool_choice": "some", "tools": [TOOL]}, "invalid_value", "tool_choice"),
    ({"tool_choice": {**TOOL, "function": {"name": "g"}}, "tools": [TOOL]}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools"),
    ({"tools": [{**TOOL, "function": {"name": "f g"}}]}, "invalid_value", "tools.0.function.name"),
    ({"tools": [{**TOOL, "function": {"name": "f", "kind": 1}}]}, "unknown_parameter", "tools.0.function.kind"),
    ({"max_completion_tokens": -5}, "invalid_value", "max_completion_tokens"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_CHATS, ids=str)
def test_bad_chats(client: TestClient, texts: Texts, fields: dict[str, Any], code: str, param: str | None) -> None:
    check_error(client.post("/v1/chat/completions", json={**CHAT, **fields}), 400, code, param)
    assert not texts.jobs


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": "words", "prompt": "\\ud800"}', b"[" * 100_000])
def test_bodies_that_are_not_json(client: TestClient, body: bytes) -> None:
    message = check_error(client.post("/v1/completions", content=body), 400, "invalid_json")
    assert "invalid json" not in message.lower()  # pydantic's words, after ours


@pytest.mark.parametrize("body", [b"[]", b"null", b"5"])
def test_bodies_that_are_no_objects(client: TestClient, body: bytes) -> None:
    assert check_error(client.post("/v1/completions", content=body), 400, "invalid_value").startswith("body: ")


def test_a_large_body(client: TestClient) -> None:
    body = json.dumps({**PROMPT, "prompt": "A" * 10_000_000})
    check_error(client.post("/v1/completions", content=body), 413, "body_too_large")


def test_a_conversation_without_a_template(texts: Texts) -> None:
    client = client_of(make_service(texts, template=None))
    check_error(client.post("/v1/chat/completions", json=CHAT), 400, "no_chat_template", "messages")


def test_another_model(client: TestClient) -> None:
    for answer in (client.post("/v1/completions", json={**PROMPT, "model": "gpt"}), client.get("/v1/models/a/b")):
        check_error(answer, 404, "model_not_found", "model")
    assert client.get("/v1/models/words").json()["context_length"] == 32


def test_paths_and_methods(client: TestClient) -> None:
    check_error(client.get("/v1/nothing"), 404, None)
    answer = client.get("/v1/completions")
    check_error(answer, 405, None)
    assert answer.headers["allow"] == "POST"


def test_a_full_queue(client: TestClient, texts: Texts) -> None:
    texts.full = True
    answer = client.post("/v1/completions", json=PROMPT)
    check_error(answer, 429, "queue_full")
    assert answer.headers["retry-after"] == "10"


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer three", "Basic two", "two", "Bearer tw", "Bearer \u00e9"])
def test_wrong_keys(texts: Texts, header: str | None) -> None:
    client = client_of(make_service(texts, keys=("one", "two")))
    headers = {} if header is None else {"Authorization": header.encode()}
    for answer in (
        client.post("/v1/completions", json=PROMPT, headers=headers),
        client.get("/metrics", headers=headers),
        client.get("/v1/nothing", headers=headers),
    ):
        check_error(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/health").status_code == 200
    assert not texts.jobs


def test_right_keys(texts: Texts) -> None:
    client = client_of(make_service(texts, keys=("one", "two")))
    for header in ("Bearer two", "bearer one"):
        assert client.post("/v1/completions", json=PROMPT, headers={"Authorization": header}).status_code == 200


def test_large_headers(client: TestClient) -> None:
    check_error(client.get("/health", headers={"x": "a" * 20_000}), 431, "headers_too_large")


def test_long_urls(client: TestClient) -> None:
    for url in ("/v1/" + "a" * 20_000, "/health?" + "a" * 20_000):
        check_error(client.get(url), 431, "headers_too_large")
    assert len(check_error(client.get("/v1/" + "a" * 10_000), 404, None)) < 80


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server logs, whatever other tests' libraries did to the root logger."""
    stream, logger = io.StringIO(), logging.getLogger("prosparse.serve")
    handler = logging.StreamHandler(stream)
    before = logger.level, logger.disabled
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.disabled = False
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.disabled = before[1]


def test_a_bug_is_logged_once_and_not_told(texts: Texts, log: io.StringIO) -> None:
    texts.submit = lambda jobs: {}["secret"]  # type: ignore[assignment,misc]
    client = TestClient(create_app(make_service(texts)))  # raises what uvicorn would log again
    message = check_error(client.post("/v1/completions", json=PROMPT), 500, None)
    assert "secret" not in message
    assert log.getvalue().count("KeyError: 'secret'") == log.getvalue().count("Traceback") == 1
    assert "POST /v1/completions failed" in log.getvalue()


def test_a_stopped_engine(client: TestClient, texts: Texts) -> None:
    assert client.get("/health").json()["status"] == "ok"
    texts.alive = False
    assert client.get("/health").status_code == 503


def test_requests_are_counted(client: TestClient, texts: Texts) -> None:
    texts.events = [Done("length", 1, 0)]
    client.post("/v1/completions", json=PROMPT)
    client.get("/v1/some/path")
    text = client.get("/metrics").text
    assert 'prosparse_requests_total{endpoint="completions",status="200"} 1.0' in text
    assert 'prosparse_requests_total{endpoint="none",status="404"} 1.0' in text
