"""Dataclasses survive a round trip through JSON; anything else in the JSON is an error that names the field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from prosparse_export.artifact.json_records import from_json, to_json


@dataclass(frozen=True)
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@dataclass(frozen=True)
class Cat:
    lives: int
    kind: Literal["cat"] = "cat"


@dataclass(frozen=True)
class Home:
    rent: float
    pets: tuple[Dog | Cat, ...] = ()
    rooms: dict[str, int] = field(default_factory=dict)
    warm: bool = True
    note: float | str | None = None


@pytest.mark.parametrize(
    "home",
    [
        Home(1.5),
        Home(1.5, (Dog("a"), Cat(9)), {"attic": 2}, False, "x"),
        Home(math.inf, note=-math.inf),
        Home(-1.0, note=0.25),
    ],
)
def test_round_trip(home: Home) -> None:
    text = json.dumps(to_json(home), allow_nan=False)
    assert from_json(Home, json.loads(text)) == home


def test_nan_is_a_string_in_json() -> None:
    assert to_json(Home(math.nan)) == {"rent": "nan", "pets": [], "rooms": {}, "warm": True}
    assert math.isnan(from_json(Home, {"rent": "nan"}).rent)


def test_an_integer_is_a_float() -> None:
    rent = from_json(Home, {"rent": 2}).rent
    assert (rent, type(rent)) == (2.0, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"^top level: expected an object, got list$"),
        ({}, r"^rent: missing$"),
        ({"rent": "much"}, r"^rent: expected float, got 'much'$"),
        ({"rent": True}, r"^rent: expected float, got True$"),
        ({"rent": 1.0, "size": 3}, r"^size: unknown key$"),
        ({"rent": 1.0, "warm": 1}, r"^warm: expected bool, got 1$"),
        ({"rent": 1.0, "rooms": {"attic": True}}, r"^rooms\.attic: expected int, got True$"),
        ({"rent": 1.0, "rooms": []}, r"^rooms: expected dict"),
        ({"rent": 1.0, "pets": {"name": "a"}}, r"^pets: expected tuple"),
        ({"rent": 1.0, "pets": [{"name": "a"}, {"lives": "9"}]}, r"pets\[1\]\.lives: expected int, got '9'"),
        ({"rent": 1.0, "pets": [{"name": "a", "kind": "cat"}]}, r"pets\[0\]\.kind: expected .*'dog'.*got 'cat'"),
        ({"rent": 1.0, "note": []}, r"^note: expected float, got \[\] or note: expected str, got \[\]$"),
    ],
)
def test_other_json_is_an_error_that_names_the_field(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Home, values)
