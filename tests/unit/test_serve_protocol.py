"""Slow and malformed clients: each gets an error object, and its connection ends."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.requests import Request
from support.http_service import Texts, make_service

from prosparse_export.serve import protocol, read_body
from prosparse_export.serve.app import create_app
from prosparse_export.serve.errors import ApiError
from prosparse_export.serve.server import ServeOptions, listen, uvicorn_config

SECONDS = 0.5


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A running server's; its limit for headers is short."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", SECONDS)
    server = uvicorn.Server(uvicorn_config(make_service(Texts()), ServeOptions()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def talk(port: int, *parts: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """Send the parts; return what the server sent until it closed the connection, and after how many seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.settimeout(10)
        for part in parts:
            try:
                client.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        received = b""
        try:
            while block := client.recv(65536):
                received += block
        except ConnectionResetError:  # it closed with our bytes unread
            pass
    return received, time.monotonic() - began


def error_of(answer: bytes, status: int) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"application/json" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return json.loads(body)["error"]


def test_headers_that_do_not_end(port: int) -> None:
    answer, seconds = talk(port, b"GET /health HTTP/1.1\r\nHost: a\r\n")
    assert error_of(answer, 408)["code"] == "headers_timeout"
    assert SECONDS <= seconds < 5


def test_more_bytes_do_not_extend_the_time(port: int) -> None:
    parts = [b"GET /health HTTP/1.1\r\n", *(b"x-%d: a\r\n" % number for number in range(8))]
    answer, _ = talk(port, *parts, pause=SECONDS / 5)
    assert error_of(answer, 408)["code"] == "headers_timeout"


def test_a_connection_that_sends_nothing(port: int) -> None:
    answer, seconds = talk(port)
    assert answer == b""
    assert SECONDS <= seconds < 5


def test_a_request_after_another_has_its_own_time(port: int) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, seconds = talk(port, request, request, b"GET", pause=SECONDS * 0.7)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.count(b"HTTP/1.1 408 ") == 1
    assert seconds >= 2 * SECONDS


def test_a_body_may_take_longer_than_headers(port: int) -> None:
    body = b'{"model": "words", "prompt": "one"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer, _ = talk(port, head, body, pause=SECONDS * 1.5)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_what_is_no_request(port: int) -> None:
    answer, _ = talk(port, b"\x16\x03\x01 hello\r\n\r\n")
    assert error_of(answer, 400)["code"] == "invalid_http"
    assert httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200


@pytest.mark.parametrize("pause", [0.0, SECONDS / 10])
def test_large_headers_in_one_packet_and_in_several(port: int, pause: float) -> None:
    large = [b"x-%d: %s\r\n" % (number, b"a" * 6000) for number in range(3)]
    parts = [b"GET /health HTTP/1.1\r\nHost: a\r\n", *large, b"\r\n"]
    answer, _ = talk(port, *(parts if pause else [b"".join(parts)]), pause=pause)
    assert error_of(answer, 431)["code"] == "headers_too_large"


def test_a_long_line_of_a_chunked_body(port: int) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer, _ = talk(port, head, b"1;" + b"a" * 20_000, pause=SECONDS / 5)
    assert error_of(answer, 400)["code"] == "invalid_http"


def test_a_body_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_body, "_SECONDS", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    with pytest.raises(ApiError, match="did not arrive within") as caught:
        asyncio.run(read_body.read_body(Request({"type": "http", "headers": []}, receive)))
    assert caught.value.status == 408


def test_requests_beyond_the_limit() -> None:
    service = make_service(Texts())
    app = create_app(service)
    sent: list[Any] = []

    async def ask(path: str) -> Any:
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        status: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            status.append(message.get("status"))

        await app(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        return status[0]

    async def scenario() -> None:
        waiting = [asyncio.ensure_future(ask("/v1/completions")) for _ in range(56)]  # 4 x (2 rows + 8 waiting) + 16
        await asyncio.sleep(0)
        assert not sent
        assert await ask("/v1/completions") == 503
        assert json.loads(sent[-1]["body"])["error"]["code"] == "too_many_requests"
        assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
        assert await ask("/health") == 405  # a probe is answered: with POST, by its route
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        last = asyncio.ensure_future(ask("/v1/completions"))
        await asyncio.sleep(0.01)
        assert not last.done()  # there is room again
        last.cancel()

    asyncio.run(scenario())


def test_connections_send_tokens_at_once() -> None:
    async def scenario() -> int:
        set_by: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            set_by.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(ServeOptions(port=0)) as listener:
            async with await asyncio.start_server(accepted, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await asyncio.wait_for(set_by, 5)

    assert asyncio.run(scenario()) != 0
