"""Restrict tokens to those that continue a JSON value, with the llguidance library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prosparse_export.errors import ProSparseError

__all__ = ["JsonGrammars", "JsonMatcher"]


class JsonMatcher:
    """The state of one text."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the value is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, ``[vocabulary]``, with -inf for tokens that are not allowed now."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Append a token, which `masked` allowed."""
        self._matcher.consume_token(token)


class JsonGrammars:
    """Compiles JSON schemas for a tokenizer.

    Args:
        tokenizer: of the model.
        stop: tokens that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: frozenset[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer.to_str(), eos_token=sorted(stop) or None)

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """Return a matcher for values of ``schema``.

        Raises:
            ProSparseError: the schema is wrong or uses what the library does not support.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(dict(schema), defaults={"whitespace_flexible": False})
            wrong = LLMatcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise ProSparseError(
                f"response_format: expected a JSON schema that can be compiled, got: {' '.join(wrong.split())}",
                hint="simplify the schema, or use type json_object",
            )
        return JsonMatcher(LLMatcher(self._tokenizer, grammar))
