"""Read a request's body within limits of size and time."""

from __future__ import annotations

import anyio
from starlette.requests import ClientDisconnect, Request

from prosparse_export.serve.errors import ApiError

__all__ = ["MAX_BODY", "read_body"]

MAX_BODY = 4 << 20
"""Bytes: a million tokens of text."""

_MOST_READ = 16 << 20  # bytes that are read and dropped, so that a client gets the error before the connection closes
_SECONDS = 30.0


async def read_body(request: Request) -> bytes:
    """Return the body.

    Raises:
        ApiError: it is larger than `MAX_BODY`, or it takes longer than 30 seconds to arrive.
    """
    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY:
                    parts.append(part)
                elif size > _MOST_READ:
                    break
    except TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {_SECONDS:.0f} seconds", code="body_timeout") from error
    except ClientDisconnect as error:
        raise ApiError(499, "The client closed the connection") from error
    if size > MAX_BODY:
        raise ApiError(413, f"The request body exceeds {MAX_BODY} bytes", code="body_too_large")
    return b"".join(parts)
