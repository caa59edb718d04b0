"""The ASGI application: routes, keys, errors."""

from __future__ import annotations

import hmac
import logging
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prosparse_export.serve import endpoints
from prosparse_export.serve.errors import ApiError, shorten
from prosparse_export.serve.service import Service

__all__ = ["MAX_HEADERS", "create_app", "headers_too_large"]

_log = logging.getLogger("prosparse.serve")
_OPEN = ("/health",)  # probes have no key
MAX_HEADERS = 16 << 10
"""Bytes of a request's URL and all its headers."""


def create_app(service: Service) -> ASGIApp:
    """Return the application that serves ``service``."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _bug},
    )
    app.state.service = service
    return _Gate(app, service)


class _Gate:
    """Checks headers and key of every request, bounds the requests that run, and counts answers by endpoint and status.

    Args:
        app: answers the requests that pass.
        service: has the keys and the metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._keys = [key.encode() for key in service.keys]
        self._running, self._most = 0, 4 * (service.rows + service.max_queue) + 16

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                endpoint = getattr(scope.get("endpoint"), "__name__", "none")  # a path could be anything
                self._service.metrics.request(endpoint, message["status"])
            await send(message)

        url = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if url + sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            return await _api_error(None, headers_too_large())(scope, receive, counted)
        if self._keys and scope["path"] not in _OPEN and not self._has_key(scope):
            error = ApiError(401, "Incorrect API key provided", code="invalid_api_key", headers=_BEARER)
            return await _api_error(None, error)(scope, receive, counted)
        if self._running >= self._most and scope["path"] not in _OPEN:  # a full server is healthy
            message = f"The server is already handling {self._running} requests"
            error = ApiError(503, message, code="too_many_requests", headers={"Retry-After": "1"})
            return await _api_error(None, error)(scope, receive, counted)
        self._running += 1
        try:
            return await self._app(scope, receive, counted)
        except Exception:  # `_bug` has answered; uvicorn would log it again
            _log.exception("%s %s failed", scope["method"], scope["path"])
        finally:
            self._running -= 1

    def _has_key(self, scope: Scope) -> bool:
        sent = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = sent.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]  # all: no hint by time
        return scheme.lower() == b"bearer" and any(matches)


def headers_too_large() -> ApiError:
    """Return the error for headers beyond `MAX_HEADERS`."""
    return ApiError(431, f"The request's URL and headers exceed {MAX_HEADERS} bytes", code="headers_too_large")


_BEARER = {"WWW-Authenticate": "Bearer"}


def _api_error(_: Request | None, error: Any) -> Response:
    return JSONResponse(error.to_dict(), error.status, error.headers)


def _http_error(request: Request, error: Any) -> Response:
    message = f"{shorten(request.method)} {shorten(request.url.path)}: {error.detail}"
    return _api_error(request, ApiError(error.status_code, message, headers=error.headers))


def _bug(request: Request, _: Exception) -> Response:
    return _api_error(request, ApiError(500, "Internal server error; see the server's log"))
