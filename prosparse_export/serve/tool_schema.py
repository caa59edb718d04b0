"""Tools of a chat request and the choice among them, checked by pydantic.

Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from prosparse_export.serve.errors import shorten

__all__ = ["Tool", "ToolChoice", "check_choice", "check_tools"]

_Name = Annotated[str, StringConstraints(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Function(_Strict):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_(self) -> dict[str, Any]:
        """The JSON schema of the arguments; a function without ``parameters`` has none."""
        nothing = {"type": "object", "properties": {}, "additionalProperties": False}
        return nothing if self.parameters is None else self.parameters


class Tool(_Strict):
    """A function that the model may call."""

    type: Literal["function"]
    function: _Function


class _Named(_Strict):
    name: _Name


class _NamedChoice(_Strict):
    type: Literal["function"]
    function: _Named


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | _NamedChoice


def check_tools(tools: Sequence[Tool]) -> None:
    """Fail if two tools have the same name.

    Raises:
        PydanticCustomError: they have.
    """
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PydanticCustomError("tools", "duplicate function name: {name}", {"name": shorten(twice)})


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool] | None) -> None:
    """Fail if a choice needs a tool that is not there.

    Raises:
        PydanticCustomError: it does.
    """
    if choice in (None, "none", "auto"):
        return
    if not tools:
        raise PydanticCustomError("tool_choice", "requires tools")
    names = [tool.function.name for tool in tools]
    if isinstance(choice, _NamedChoice) and choice.function.name not in names:
        got = {"names": shorten(", ".join(names), 200), "name": shorten(choice.function.name)}
        raise PydanticCustomError("tool_choice", "expected the name of a tool ({names}), got {name}", got)


Tools: TypeAlias = Annotated[list[Tool], Field(max_length=128)]
"""OpenAI's limit."""
