"""What errors tell: no paths of the server, no long values of the client; and what is no error: null."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient
from support.http_service import TEMPLATE, Texts, client_of, make_service

from prosparse_export.artifact.chat_template import ChatTemplate
from prosparse_export.serve.schema import ChatRequest, CompletionRequest, parse

PROMPT: dict[str, Any] = {"model": "words", "prompt": "one two"}
CHAT: dict[str, Any] = {"model": "words", "messages": [{"role": "user", "content": "one"}]}
LONG = "a" * 5000
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "a" * 64}}


@pytest.fixture
def client() -> TestClient:
    return client_of(make_service(Texts()))


def message_of(answer: Any, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    message: str = answer.json()["error"]["message"]
    return message


def test_a_template_that_fails_is_told_without_its_folder() -> None:
    template = ChatTemplate(TEMPLATE, {}, Path("/srv/secret/chat_template.jinja"))
    service = dataclasses.replace(make_service(Texts()), template=template)
    message = message_of(
        client_of(service).post("/v1/chat/completions", json={**CHAT, "chat_template_kwargs": {"zero": 0}})
    )
    assert "chat_template.jinja: " in message
    assert "zero" in message
    assert "secret" not in message
    assert "--chat-template" not in message


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [10**300]},
        {"prompt": [10**4299]},
        {"max_tokens": 10**300},
        {"max_tokens": int("9" * 4300)},
        {LONG: 1},
        {"metadata": {LONG: 1}},
        {"response_format": {"type": LONG}},
    ],
    ids=lambda fields: next(iter(fields))[:20],
)
def test_long_values_of_a_completion_are_cut(client: TestClient, fields: dict[str, Any]) -> None:
    assert len(message_of(client.post("/v1/completions", json={**PROMPT, **fields}))) < 250


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "b" * 64}}, "tools": [TOOL]},
        {"tool_choice": LONG, "tools": [TOOL]},
        {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
        {"tools": [TOOL, TOOL]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_long_values_of_a_chat_are_cut(client: TestClient, fields: dict[str, Any]) -> None:
    assert len(message_of(client.post("/v1/chat/completions", json={**CHAT, **fields}))) < 250


def test_a_long_name_of_a_model_is_cut(client: TestClient) -> None:
    assert len(message_of(client.post("/v1/completions", json={**PROMPT, "model": LONG}), 404)) < 250


def nulls_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Null for each field that may be absent."""
    return {field.alias or name: None for name, field in kind.model_fields.items() if not field.is_required()}


@pytest.mark.parametrize(("kind", "least"), [(CompletionRequest, PROMPT), (ChatRequest, CHAT)])
def test_null_is_an_absent_field(kind: type[BaseModel], least: dict[str, Any], client: TestClient) -> None:
    nulls = nulls_of(kind)
    assert {"stream", "n", "stop", "seed"} <= nulls.keys()
    path = "completions" if kind is CompletionRequest else "chat/completions"
    plain, null = (client.post(f"/v1/{path}", json={**fields, **least}) for fields in ({}, nulls))
    assert null.status_code == 200, null.text
    assert null.json()["choices"] == plain.json()["choices"]


def test_null_within_objects() -> None:
    options = {"include_usage": None, "include_obfuscation": None}
    form = {"type": "json_schema", "json_schema": {"name": None, "schema": None, "strict": None, "description": None}}
    body = {**PROMPT, "stream_options": options, "response_format": form}
    request = parse(CompletionRequest, json.dumps(body).encode())
    assert request.response_format is not None
    assert request.response_format.schema_to_follow() == {"type": "object"}
