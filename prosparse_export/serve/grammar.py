"""Restrict tokens to those that continue a text of a grammar, with the llguidance library."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.errors import ProSparseError
from prosparse_export.serve.errors import shorten

__all__ = ["Grammars", "Matcher", "json_grammar", "json_rule"]

_COMPACT = {"whitespace_flexible": False}
_PLACE = re.compile(r"at \d+\(\d+\): (failed to compile JSON schema: )?")
_SHOWN = re.compile(r" *\d+ \| ")


def json_rule(schema: Mapping[str, Any], **options: object) -> str:
    """Return a JSON schema as a part of a Lark rule; ``options`` are llguidance's for writing JSON."""
    return "%json " + json.dumps({"x-guidance": {**_COMPACT, **options}, **schema})


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the Lark grammar of the JSON values that a schema describes."""
    return f"start: {json_rule(schema)}\n"


class Matcher:
    """The state of one text."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, ``[vocabulary]``, with -inf for tokens that are not allowed now."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Append a token, which `masked` allowed."""
        self._matcher.consume_token(token)

    def copy(self) -> Matcher:
        """Return a matcher in the same state for another text; the compiled grammar is shared."""
        return Matcher(self._matcher.deep_copy())


class Grammars:
    """Compiles grammars for a tokenizer; that may take a second, without the GIL.

    Args:
        tokenizer: of the model.
        stop: tokens that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: frozenset[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer.to_str(), eos_token=sorted(stop) or None)

    def matcher(self, lark: str, field: str) -> Matcher:
        """Return a matcher for texts of a grammar.

        Args:
            lark: a grammar in llguidance's Lark syntax.
            field: the request's field with the JSON schemas in it, for error messages.

        Raises:
            ProSparseError: a schema is wrong or uses what the library does not support.
        """
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark))
        if matcher.is_error():
            raise ProSparseError(
                f"{field}: cannot compile the JSON schema: {shorten(_reason(matcher.get_error()), 300)}",
                hint="simplify the schema",
            )
        return Matcher(matcher)


def _reason(error: str) -> str:
    """Return what is wrong, without the place in our grammar and the lines that show it."""
    lines = itertools.takewhile(lambda line: not _SHOWN.match(line), error.splitlines())
    return " ".join(_PLACE.sub("", " ".join(lines)).split())
