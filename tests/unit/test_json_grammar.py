"""Tokens that may continue a JSON value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from prosparse_export import ProSparseError
from prosparse_export.serve.json_grammar import JsonGrammars

SCHEMA = {"type": "object", "properties": {"n": {"enum": [12, 7]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder / "tokenizer.json"))


@pytest.mark.parametrize("seed", range(5))
def test_any_choice_of_tokens_is_a_value_of_the_schema(tokenizer: Tokenizer, seed: int) -> None:
    matcher = JsonGrammars(tokenizer, frozenset({1})).matcher(SCHEMA)
    rng, tokens = np.random.default_rng(seed), []
    while not matcher.complete:
        logits = rng.standard_normal(tokenizer.get_vocab_size() + 3).astype(np.float32)  # padded to a multiple
        tokens.append(int(matcher.masked(logits).argmax()))
        matcher.accept(tokens[-1])
        assert len(tokens) < 50
    text = tokenizer.decode(tokens)
    assert json.loads(text)["n"] in (12, 7)


def test_logits_are_not_changed(tokenizer: Tokenizer) -> None:
    matcher = JsonGrammars(tokenizer, frozenset({1})).matcher({"type": "object"})
    logits = np.ones(tokenizer.get_vocab_size(), np.float32)
    masked = matcher.masked(logits)
    assert (logits == 1).all()
    assert 0 < (masked == 1).sum() < len(masked)


def test_a_schema_that_cannot_be_compiled(tokenizer: Tokenizer) -> None:
    with pytest.raises(ProSparseError, match="response_format: expected a JSON schema"):
        JsonGrammars(tokenizer, frozenset({1})).matcher({"type": "nothing"})
