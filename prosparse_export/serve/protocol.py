"""HTTP/1.1 of uvicorn, with a time limit for headers and OpenAI's error objects for what is no request."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prosparse_export.serve.app import headers_too_large
from prosparse_export.serve.errors import ApiError

__all__ = ["HEADER_SECONDS", "HttpProtocol"]

HEADER_SECONDS = 10.0
"""From the first byte of a request, or from the connection's start, until its headers are complete."""


class HttpProtocol(H11Protocol):
    """A connection. Between requests uvicorn's own limit holds (``timeout_keep_alive``), until a byte arrives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first headers."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on; the time ends with the headers."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, or headers that are too long for h11."""
        found = sys.exc_info()[1]  # uvicorn calls this where it has caught h11's error
        too_large = isinstance(found, h11.RemoteProtocolError) and found.error_status_hint == 431
        if too_large and self.conn.our_state is h11.IDLE:  # else it is a line within a chunked body
            self._end(headers_too_large())
        else:
            self._end(ApiError(400, msg, code="invalid_http"))

    def _watch(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None:  # more bytes do not extend it
            self._late = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        begun, _ = self.conn.trailing_data
        if begun:
            message = f"The headers did not arrive within {HEADER_SECONDS:g} seconds"
            self._end(ApiError(408, message, code="headers_timeout"))
        else:
            self.transport.close()

    def _end(self, error: ApiError) -> None:
        """Send the error, if no answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.to_dict()).encode()
            headers = [
                ("content-type", "application/json"),
                ("connection", "close"),
                ("content-length", str(len(body))),
            ]
            for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
