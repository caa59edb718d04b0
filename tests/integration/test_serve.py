"""`prosparse serve` through OpenAI's own client: texts as `generate` writes them, whatever runs beside."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from support.server import LONG, TEMPLATE, Server, serving

from prosparse_export.runtime.model import SparseModel, load
from prosparse_export.runtime.sampling import Sampling

pytestmark = pytest.mark.integration
PROMPTS = ["The city of Paris is", "In 1905,", "Water", "The river flows through the old town and " * 9, "A", "He was"]


@pytest.fixture(scope="module")
def server(demo_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text(TEMPLATE)
    with serving(demo_artifact, "--max-batch", 4, "--max-queue", 12, "--chat-template", template) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(demo_artifact: Path) -> SparseModel:
    return load(demo_artifact, threads=1)


def test_texts_of_concurrent_requests(client: openai.OpenAI, model: SparseModel) -> None:
    def ask(number: int) -> str:
        prompt, seed = PROMPTS[number % len(PROMPTS)], number if number % 2 else None
        stream = client.completions.create(
            model="demo",
            prompt=prompt,
            max_tokens=10 + number,
            temperature=0.0 if seed is None else 0.8,
            seed=seed,
            stream=True,
        )
        return "".join(chunk.choices[0].text for chunk in stream)

    def expected(number: int) -> str:
        sampling = Sampling(0.8, seed=number) if number % 2 else Sampling()
        return model.generate(PROMPTS[number % len(PROMPTS)], max_new_tokens=10 + number, sampling=sampling)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [expected(number) for number in range(12)]


def test_several_prompts_and_choices(client: openai.OpenAI, model: SparseModel) -> None:
    answer = client.completions.create(
        model="demo", prompt=PROMPTS[:2], n=2, max_tokens=12, temperature=0.8, seed=5, extra_body={"top_k": 30}
    )
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert [choice.text for choice in answer.choices] == model.generate_batch(
        prompts, max_new_tokens=12, sampling=Sampling(0.8, top_k=30, seed=5)
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 48


def test_stop_strings_and_token_ids(client: openai.OpenAI, model: SparseModel) -> None:
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(PROMPTS[0]).ids
    answer = client.completions.create(model="demo", prompt=ids, max_tokens=40, temperature=0, stop=[" United"])
    assert answer.choices[0].text == model.generate(PROMPTS[0], max_new_tokens=40, stop=[" United"])
    assert answer.choices[0].finish_reason == "stop"


def test_chat(client: openai.OpenAI, model: SparseModel) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The city"}]
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("<s>Be brief.\nThe city\n", add_special_tokens=False).ids
    tokens = [int(row[0]) for row in model.stream([ids], max_new_tokens=8)]
    expected = model.tokenizer.decode(tokens)
    answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 8)
    parts = client.chat.completions.create(
        model="demo",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(parts)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    told = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert "".join(token.token for token in told) == expected
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in told)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == len(ids) + 8


@pytest.mark.parametrize("schema", [None, {"type": "object", "properties": {"n": {"enum": [12, 345]}}}])
def test_answers_in_json(client: openai.OpenAI, schema: dict[str, object] | None) -> None:
    wanted = {"type": "json_object"}
    if schema is not None:
        schema = {**schema, "required": ["n"], "additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}  # type: ignore[dict-item]
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Numbers"}],
        max_tokens=400,
        temperature=0.7,
        seed=3,
        response_format=wanted,  # type: ignore[arg-type]
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        value = json.loads(choice.message.content or "")
        assert isinstance(value, dict)
        assert schema is None or value["n"] in (12, 345)
    assert (choice.message.content or "").startswith("{")
    assert schema is None or choice.finish_reason == "stop"


def test_a_call_of_a_tool(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    parameters |= {"additionalProperties": False}
    request: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "The weather"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "temperature": 0,
    }
    choice = client.chat.completions.create(**request).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    with client.chat.completions.stream(**request) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "prosparse-export"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.completions.create(model="other", prompt="A")


BAD = [
    (b"{", 400, "invalid_json"),
    (b"[" * 100_000, 400, "invalid_json"),
    (b'{"model": "demo", "prompt": "A", "colour": 1}', 400, "unknown_parameter"),
    (b'{"model": "demo", "prompt": "A", "max_tokens": -1}', 400, "invalid_value"),
    (b'{"model": "demo", "prompt": "A", "temperature": 1e999}', 400, "invalid_value"),
    (b'{"model": "demo", "prompt": "A", "logit_bias": {"5": 1}}', 400, "invalid_value"),
    (b'{"model": "demo", "prompt": ""}', 400, "invalid_value"),
    (b'{"model": "demo", "prompt": [1000000]}', 400, "invalid_value"),
    (b'{"model": "demo", "prompt": "A", "n": 100}', 400, "too_many_sequences"),
    (b'{"model": "demo", "prompt": "A", "max_tokens": 3000}', 400, "context_length_exceeded"),
    (json.dumps({"model": "demo", "prompt": "word " * 3000}).encode(), 400, "context_length_exceeded"),
    (b'{"model": "demo", "prompt": "' + b"A" * 10_000_000 + b'"}', 413, "body_too_large"),
    (b'{"model": "demo", "messages": [{"role": "judge", "content": "A"}]}', 400, "chat_template_failed"),
    (b'{"model": "demo", "messages": []}', 400, "invalid_value"),
    (
        b'{"model": "demo", "messages": [{"role": "user", "content": "A"}], "response_format": {"type": "json_schema",'
        b' "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}',
        400,
        "invalid_json_schema",
    ),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_bad_requests(server: Server, body: bytes, status: int, code: str | None) -> None:
    path = "chat/completions" if b"messages" in body else "completions"
    answer = httpx2.post(f"{server.url}/v1/{path}", content=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text


def test_unknown_paths_and_methods(server: Server) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = httpx2.request(method, server.url + path)
        assert answer.status_code == status
        assert path in answer.json()["error"]["message"]


def test_large_headers_are_refused(server: Server) -> None:
    answer = httpx2.get(f"{server.url}/health", headers={"x-large": "a" * 20_000})
    assert answer.status_code == 431
    assert answer.json()["error"]["code"] == "headers_too_large"


def test_a_full_queue(server: Server, client: openai.OpenAI) -> None:
    body = {**LONG, "n": 12, "max_tokens": 600, "stream": True}
    with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as first:
        lines = first.iter_lines()  # kept: the stream is closed with its iterator
        next(lines)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="demo", prompt="A", n=12, max_tokens=4)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    wait_until_idle(server)


def test_a_client_that_leaves_frees_its_rows(server: Server) -> None:
    body = {**LONG, "n": 4, "max_tokens": 2000}
    for stream in (True, False):
        began = time.monotonic()
        try:
            with httpx2.stream(
                "POST",
                f"{server.url}/v1/completions",
                json={**body, "stream": stream},
                timeout=httpx2.Timeout(10, read=1),
            ) as answer:
                for _, _ in zip(range(5), answer.iter_lines(), strict=False):
                    pass
        except httpx2.ReadTimeout:
            assert not stream
        wait_until_idle(server)
        assert time.monotonic() - began < 30


def wait_until_idle(server: Server) -> None:
    for _ in range(300):
        state = httpx2.get(f"{server.url}/health").json()
        if state["running"] == state["waiting"] == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"rows are still taken: {state}")


def test_metrics(server: Server, client: openai.OpenAI) -> None:
    client.completions.create(model="demo", prompt="Water", max_tokens=3)
    text = httpx2.get(f"{server.url}/metrics").text
    for name in ("requests_total", "generated_tokens_total", "time_to_first_token_seconds_count", "running_sequences"):
        assert f"prosparse_{name}" in text
    assert 'prosparse_requests_total{endpoint="completions",status="200"}' in text


def test_keys(demo_artifact: Path) -> None:
    with serving(demo_artifact, PROSPARSE_API_KEY="one two") as server:
        assert "memory: at most" in server.log
        right = openai.OpenAI(base_url=f"{server.url}/v1", api_key="two", max_retries=0)
        assert right.completions.create(model="demo", prompt="A", max_tokens=2).choices[0].text
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="three", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            wrong.completions.create(model="demo", prompt="A")
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert httpx2.get(f"{server.url}/metrics").status_code == 401
