"""Text from tokens: whole characters, stop strings across pieces."""

from __future__ import annotations

import pytest
from conftest import DEMO
from tokenizers import Tokenizer

from prosparse_export.runtime.detokenizer import Detokenizer

TEXT = "The city — naïve café, 東京 — is old. The end of it."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def pieces(tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> list[str]:
    stream = Detokenizer(tokenizer, stop)
    result = [stream.add(token) for token in tokenizer.encode(TEXT).ids]
    return [*result, stream.end()]


def test_pieces_are_the_text_and_cut_no_character(tokenizer: Tokenizer) -> None:
    result = pieces(tokenizer)
    assert "".join(result) == tokenizer.decode(tokenizer.encode(TEXT).ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in result)
    assert sum(map(bool, result)) > 10  # it does come in pieces


@pytest.mark.parametrize("stop", ["naïve", " The end", "old", "京", "."])
def test_a_stop_string_ends_the_text_and_is_not_shown(stop: str, tokenizer: Tokenizer) -> None:
    whole = tokenizer.decode(tokenizer.encode(TEXT).ids)
    result = pieces(tokenizer, (stop, "never there"))
    assert "".join(result) == whole[: whole.index(stop)]


def test_the_first_of_several_stops_counts(tokenizer: Tokenizer) -> None:
    whole = tokenizer.decode(tokenizer.encode(TEXT).ids)
    assert "".join(pieces(tokenizer, ("old", "city"))) == whole[: whole.index("city")]


def test_what_only_began_like_a_stop_is_shown_in_the_end(tokenizer: Tokenizer) -> None:
    whole = tokenizer.decode(tokenizer.encode(TEXT).ids)
    result = pieces(tokenizer, ("of it. And more",))
    assert "".join(result) == whole
    assert result[-1] == "of it."
