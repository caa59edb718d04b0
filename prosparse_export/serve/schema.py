"""Bodies of requests, checked by pydantic: unknown fields, wrong types, and numbers out of range are errors.

Source: OpenAI's API reference, "Create completion" and "Create chat completion".
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from prosparse_export.serve.errors import ApiError, invalid, shorten
from prosparse_export.serve.tool_calls import for_template
from prosparse_export.serve.tool_schema import Tool, ToolChoice, Tools, check_choice, check_tools

__all__ = ["ChatRequest", "CompletionRequest", "Message", "parse"]

_MOST_CHOICES = 128
_ALTERNATIVES = ("str", "constrained-str")  # pydantic's names for a union's texts; no field is called so
_NonEmpty = Annotated[str, StringConstraints(min_length=1)]
# Lists stop at their first error: pydantic would describe each of a body's million wrong items.
_TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_Stops = Annotated[list[_NonEmpty], Field(max_length=16, fail_fast=True)]
_TOO_SHORT = ("string_too_short", "too_short")  # every bound here is 1
_NOT_TEXT = ("image_url", "input_audio", "file")
_UNSUPPORTED = "unsupported_content"
_ANY_OBJECT = {"type": "object"}


def _only(accepted: object) -> AfterValidator:
    """Return a check of a field that is not implemented: it accepts the value without effect."""

    def check(value: Any) -> Any:
        if value != accepted:
            told = {"value": json.dumps(accepted)}
            raise PydanticCustomError("not_supported", "not supported; only {value} is accepted", told)
        return value

    return AfterValidator(check)


def _null(default: object) -> BeforeValidator:
    """Return a step that takes null for an absent field, as OpenAI does."""
    return BeforeValidator(lambda value: default if value is None else value)


_Zero = Annotated[float, _only(0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StreamOptions(_Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = False  # none is added


class _JsonSchema(_Strict):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any], _null(_ANY_OBJECT)] = Field(_ANY_OBJECT, alias="schema")


class _ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> _ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("no_schema", "type json_schema requires the field json_schema")
        return self

    def schema_to_follow(self) -> dict[str, Any] | None:
        """Return the JSON schema of the answer, or None for any text."""
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.type == "json_schema" and self.json_schema else _ANY_OBJECT


class _Request(_Strict):
    """Fields of both interfaces. Those without effect here accept only the value that has none."""

    model: str
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES), _null(1)] = 1
    stop: _NonEmpty | _Stops | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0)
    seed: int | None = Field(None, ge=0)
    response_format: _ResponseFormat | None = None
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    logit_bias: Annotated[dict[str, Any], _only({})] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(_Request):
    """Body of /v1/completions."""

    prompt: (
        _NonEmpty
        | Annotated[list[_NonEmpty], Field(min_length=1, fail_fast=True)]
        | _TokenIds
        | Annotated[list[_TokenIds], Field(min_length=1, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Annotated[bool, _only(False)] | None = False
    best_of: Annotated[int, _only(1)] | None = None
    suffix: Annotated[str, _only("")] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class _Part(_Strict):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") in _NOT_TEXT:
            raise PydanticCustomError(
                _UNSUPPORTED, "this model is text-only; got a content part of type {type}", {"type": value["type"]}
            )
        return value


class Message(BaseModel):
    """A message; fields that a template may know are passed on."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: _NonEmpty
    content: str | Annotated[list[_Part], Field(fail_fast=True)] | None = None

    def for_template(self) -> dict[str, Any]:
        """Return the message with its content as one string and the arguments of tool calls as objects."""
        values = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            values["content"] = "".join(part.text for part in self.content)
        if "tool_calls" in values:
            values["tool_calls"] = for_template(values["tool_calls"])
        return {"content": "", **values}


class ChatRequest(_Request):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("tools")
    @classmethod
    def _different_tools(cls, tools: list[Tool] | None) -> list[Tool] | None:
        check_tools(tools or [])
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _known_tool(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        if "tools" in info.data:  # else they are wrong themselves
            check_choice(choice, info.data["tools"])
        return choice

    @property
    def tools_to_use(self) -> list[Tool]:
        """The tools that an answer may call."""
        return [] if self.tool_choice == "none" else self.tools or []


_Model = TypeVar("_Model", bound=_Request)


def parse(kind: type[_Model], body: bytes) -> _Model:
    """Return the request in a body.

    Raises:
        ApiError: it is no JSON, or not such a request.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _first(error) from error


def _first(error: ValidationError) -> ApiError:
    """Return the first error as an answer."""
    problems = error.errors(include_url=False, include_input=False)
    problem = next((found for found in problems if found["type"] == _UNSUPPORTED), problems[0])
    path = _path(problem["loc"])
    if problem["type"] == _UNSUPPORTED:
        return invalid(f"{path}: {problem['msg']}", path, _UNSUPPORTED)
    if problem["type"] == "json_invalid":
        reason = problem["msg"].removeprefix("Invalid JSON: ")
        return invalid(f"The body is not valid JSON: {reason}", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        return invalid(f"Unrecognized request argument supplied: {path}", path, "unknown_parameter")
    here = [other for other in problems if _path(other["loc"]) == path]  # alternatives of a union
    if any(other["type"] in _TOO_SHORT for other in here):
        return invalid(f"{path}: must not be empty", path, "invalid_value")
    texts = dict.fromkeys(other["msg"] for other in here)
    return invalid(f"{path or 'body'}: {', or: '.join(texts)}", path or None, "invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """Return the field's path, without the names of a union's alternatives."""
    branches = [part for part in location if isinstance(part, str) and ("[" in part or part in _ALTERNATIVES)]
    return ".".join(shorten(str(part)) for part in location if part not in branches)
