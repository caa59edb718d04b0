"""Errors in the format of OpenAI's API: a status and an object with message, type, param, and code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prosparse_export.errors import ProSparseError

__all__ = ["ApiError", "invalid", "of_error", "shorten"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: for the client.
        param: the field at fault.
        code: a short name for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._object = {"message": message, "type": _type(status), "param": param, "code": code}

    def to_dict(self) -> dict[str, Any]:
        """Return the body."""
        return {"error": self._object}


def shorten(value: str | int, most: int = 40) -> str:
    """Return what a client sent as an error message repeats it: in at most ``most`` characters."""
    if isinstance(value, int):  # Python writes no integers of more than 4300 digits
        return str(value) if value < 10 ** (most - 1) else f"more than 10^{most - 1}"
    return value if len(value) <= most else f"{value[: most - 3]}..."


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that can never succeed."""
    return ApiError(400, message, param=param, code=code)


def of_error(
    error: ProSparseError, status: int, *, code: str | None = None, retry_after: int | None = None
) -> ApiError:
    """Return one of our errors, with its hint, as an answer."""
    message = f"{error} ({error.hint})" if error.hint else str(error)
    return ApiError(
        status, message, code=code, headers={} if retry_after is None else {"Retry-After": str(retry_after)}
    )
