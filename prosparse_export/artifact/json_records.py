"""Frozen dataclasses to JSON and back, checked field by field."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_json", "to_json"]

_T = TypeVar("_T")
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any) -> Any:
    """Return dataclasses as objects, tuples as arrays; a field that is None is left out.

    JSON has no NaN and no infinities: they become the strings ``nan``, ``inf`` and ``-inf``.
    """
    if is_dataclass(value):
        entries = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: to_json(entry) for name, entry in entries if entry is not None}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(kind: type[_T], value: object, where: str = "") -> _T:
    """Return ``value``, from `to_json`, as an instance of the dataclass ``kind``.

    Supported field types: dataclasses, str, bool, int, float, Literal, unions, ``tuple[X, ...]`` and ``dict[str, X]``.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type; names the field.
    """
    result: _T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _decode_record(kind, value, where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], entry, f"{where}.{key}".lstrip(".")) for key, entry in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if kind is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]  # just checked
    if isinstance(kind, type) and type(value) is kind:  # not isinstance: True is no int here
        return value
    expected = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ValueError(f"{where}: expected {expected}, got {value!r:.60}")


def _decode_record(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'top level'}: expected an object, got {type(value).__name__}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    prefix = f"{where}." if where else ""
    entries = {n: _decode(hints[n], entry, f"{prefix}{n}") for n, entry in value.items() if n in known}
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{prefix}{unknown[0]}: unknown key")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{name}: missing")
    return kind(**entries)


def _decode_union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    errors = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _decode(kind, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(" or ".join(errors))
