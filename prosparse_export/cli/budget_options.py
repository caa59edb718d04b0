"""Types of the options that set a budget: a size in bytes, a relative increase."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["Percent", "Size"]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Size(click.ParamType):  # type: ignore[type-arg]
    """A size such as ``91MB``, ``3.5GB`` or ``4GiB``, as bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(value))
        if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
            self.fail(f"{value!r}: expected a size, such as 91MB or 3.5GB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A percentage such as ``5%``, as a fraction."""

    name = "PERCENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r}: expected a percentage, such as 5%", param, ctx)
        return float(match[1]) / 100
