"""Requests that would cost much are refused before they cost anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from starlette.testclient import TestClient
from support.http_service import Texts, client_of, make_service

from prosparse_export.cli.serve import serve_command
from prosparse_export.serve import read_body
from prosparse_export.serve.schema import ChatRequest, CompletionRequest
from prosparse_export.serve.service import Service


@pytest.fixture
def client() -> TestClient:
    return client_of(make_service(Texts()))


def test_too_many_prompts_are_refused_before_any_is_tokenized(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "tokenize", lambda *_: pytest.fail("tokenized"))
    body = {"model": "words", "prompt": ["one"] * 30000, "max_tokens": 1}
    answer = client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_sequences")
    assert "30000 prompts x n = 1" in answer.json()["error"]["message"]


def test_a_prompt_with_more_characters_than_fit_is_not_tokenized(client: TestClient) -> None:
    body = {"model": "words", "prompt": "one " * 100_000}
    answer = client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "400000 characters" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [-1] * 10_000},
        {"prompt": [[]] * 10_000},
        {"prompt": [""] * 10_000},
        {"prompt": "one", "stop": [""] * 16},
        {"messages": [{}] * 10_000},
        {"messages": [{"role": "user", "content": [{"type": "x"}] * 10_000}]},
    ],
    ids=lambda fields: json.dumps(fields)[:30],
)
def test_wrong_lists_are_described_by_their_first_item(fields: dict[str, Any]) -> None:
    kind = ChatRequest if "messages" in fields else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "words", **fields}))
    assert caught.value.error_count() < 12  # an alternative of the union, or a field, each


def test_the_bound_of_a_body_is_the_documented_one() -> None:
    assert read_body.MAX_BODY == 4 << 20


def test_an_empty_key_is_refused() -> None:
    found = CliRunner().invoke(serve_command, ["missing.onnx", "--api-key", "one", "--api-key", " "])
    assert (found.exit_code, "expected a key" in found.output) == (2, True)
