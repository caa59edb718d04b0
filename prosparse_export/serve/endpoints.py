"""The endpoints: a request's body in, an answer or a stream of events out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from prosparse_export.serve.answers import Answer, Choice
from prosparse_export.serve.errors import ApiError, of_error
from prosparse_export.serve.job import Done, Failed, Job, Piece
from prosparse_export.serve.read_body import read_body
from prosparse_export.serve.schema import ChatRequest, CompletionRequest, parse
from prosparse_export.serve.service import Events, Service

__all__ = ["chat_completions", "completions", "health", "metrics", "model", "models"]

_COMPLETION_TOKENS = 16  # OpenAI's default for max_tokens of a completion; a chat continues to its end
# Templates, tokenizers and grammars run in threads: a long prompt must not hold up the streams of others.
_SLOW_CLIENT = 60.0  # seconds beyond the time limit of its text that a client may take to read a stream


async def completions(request: Request) -> Any:
    """POST /v1/completions."""
    service: Service = request.app.state.service
    body = parse(CompletionRequest, await read_body(request))
    service.check_model(body.model)
    texts = body.prompts()
    service.check_sequences(len(texts), body.n)
    prompts = await asyncio.to_thread(lambda: [service.tokenize(text) for text in texts])
    limit = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = await asyncio.to_thread(service.compile_grammar, body)
    jobs, events = service.submit(body, prompts, limit, body.logprobs, grammar)
    answer = _answer(service, chat=False, logprobs=body.logprobs is not None)
    return await _respond(request, body, jobs, events, answer, sum(map(len, prompts)))


async def chat_completions(request: Request) -> Any:
    """POST /v1/chat/completions."""
    service: Service = request.app.state.service
    body = parse(ChatRequest, await read_body(request))
    service.check_model(body.model)
    service.check_sequences(1, body.n)
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools_to_use] or None
    prompt = await asyncio.to_thread(service.render, body.messages, tools, body.chat_template_kwargs or {})
    ids = await asyncio.to_thread(service.tokenize, prompt, special=False)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    grammar = await asyncio.to_thread(service.compile_grammar, body)
    jobs, events = service.submit(body, [ids], limit, (body.top_logprobs or 0) if body.logprobs else None, grammar)
    answer = _answer(service, chat=True, logprobs=bool(body.logprobs), tools=bool(tools))
    return await _respond(request, body, jobs, events, answer, len(ids))


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_model(service)]})


async def model(request: Request) -> Response:
    """GET /v1/models/{name}."""
    service: Service = request.app.state.service
    service.check_model(request.path_params["name"])
    return JSONResponse(_model(service))


async def health(request: Request) -> Response:
    """GET /health: 200 while texts can be generated."""
    engine = request.app.state.service.engine
    state = {"status": "ok" if engine.alive else "stopped", "running": engine.running, "waiting": engine.waiting}
    return JSONResponse(state, 200 if engine.alive else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "prosparse-export",
        "context_length": service.capacity,
    }


def _answer(service: Service, *, chat: bool, logprobs: bool, tools: bool = False) -> Answer:
    return Answer(service.name, service.token_texts, chat=chat, logprobs=logprobs, tools=tools)


async def _respond(
    request: Request,
    body: CompletionRequest | ChatRequest,
    jobs: list[Job],
    events: Events,
    answer: Answer,
    prompt_tokens: int,
) -> Any:
    def cancel() -> None:
        for job in jobs:
            job.cancelled = True

    if body.stream:
        counted = body.stream_options is not None and body.stream_options.include_usage
        stream = _stream(len(jobs), events, answer, prompt_tokens if counted else None)
        return _EventStream(stream, cancel, request.app.state.service.timeout + _SLOW_CLIENT)
    try:
        choices = await _collect(request, len(jobs), events)
    finally:
        cancel()
    return JSONResponse(answer.whole(choices, prompt_tokens))


async def _collect(request: Request, count: int, events: Events) -> list[Choice]:
    """Wait for the whole texts, or until the client is gone."""
    texts = asyncio.ensure_future(_texts(count, events))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({texts, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not texts.done():
            raise ApiError(499, "The client closed the connection")
        return texts.result()
    finally:
        texts.cancel()
        gone.cancel()


async def _texts(count: int, events: Events) -> list[Choice]:
    choices = [Choice() for _ in range(count)]
    while any(choice.done is None for choice in choices):
        number, event = await events.get()
        if isinstance(event, Failed):
            raise of_error(event.error, event.status)
        _update(choices[number], event)
    return choices


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _update(choice: Choice, event: Piece | Done) -> None:
    if isinstance(event, Done):
        choice.done = event
        return
    choice.text += event.text
    if event.logprobs is not None:
        choice.logprobs.append(event.logprobs)


async def _stream(count: int, events: Events, answer: Answer, prompt_tokens: int | None) -> AsyncIterator[str]:
    choices = [Choice() for _ in range(count)]
    for number in range(count):
        if (first := answer.first_chunk(number)) is not None:
            yield _event(first)
    while any(choice.done is None for choice in choices):
        number, event = await events.get()
        if isinstance(event, Failed):
            yield _event(of_error(event.error, event.status).to_dict())
            return
        if isinstance(event, Done):
            choices[number].done = event
            chunks = answer.last_chunks(number, event)
        else:
            chunks = answer.chunks(number, event.text, event.logprobs)
        for chunk in chunks:
            yield _event(chunk)
    if prompt_tokens is not None:
        yield _event(answer.usage_chunk(choices, prompt_tokens))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class _EventStream:
    """Server-sent events. The texts are cancelled when the client leaves, reads too slowly, or has got everything."""

    def __init__(self, events: AsyncIterator[str], cancel: Callable[[], None], seconds: float) -> None:
        self._events, self._cancel, self._seconds = events, cancel, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter: nginx must not collect events
        response = StreamingResponse(self._events, media_type="text/event-stream", headers=headers)
        try:
            with anyio.move_on_after(self._seconds):
                await response(scope, receive, send)
        finally:
            self._cancel()
