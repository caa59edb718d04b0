"""Tokens that may continue a JSON value or a call of a tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from prosparse_export import ProSparseError
from prosparse_export.serve.grammar import Grammars, json_grammar
from prosparse_export.serve.tool_grammar import tool_grammar
from prosparse_export.serve.tool_schema import Tool, ToolChoice

SCHEMA = {"type": "object", "properties": {"n": {"enum": [12, 7]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, frozenset({1}))


@pytest.mark.parametrize("seed", range(5))
def test_any_choice_of_tokens_is_a_value_of_the_schema(grammars: Grammars, tokenizer: Tokenizer, seed: int) -> None:
    matcher = grammars.matcher(json_grammar(SCHEMA), "response_format")
    rng, tokens = np.random.default_rng(seed), []
    while not matcher.complete:
        logits = rng.standard_normal(tokenizer.get_vocab_size() + 3).astype(np.float32)  # padded to a multiple
        tokens.append(int(matcher.masked(logits).argmax()))
        matcher.accept(tokens[-1])
        assert len(tokens) < 50
    text = tokenizer.decode(tokens)
    assert json.loads(text)["n"] in (12, 7)


def test_logits_are_not_changed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    matcher = grammars.matcher(json_grammar({"type": "object"}), "response_format")
    logits = np.ones(tokenizer.get_vocab_size(), np.float32)
    masked = matcher.masked(logits)
    assert (logits == 1).all()
    assert 0 < (masked == 1).sum() < len(masked)


def test_a_copy_is_a_text_of_its_own(grammars: Grammars, tokenizer: Tokenizer) -> None:
    first = grammars.matcher(json_grammar(SCHEMA), "response_format")
    second, logits = first.copy(), np.ones(tokenizer.get_vocab_size(), np.float32)
    before = second.masked(logits)
    first.accept(int(before.argmax()))
    assert (second.masked(logits) == before).all()
    assert (first.masked(logits) != before).any()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nothing"}, "Invalid type: nothing"),
        ({"type": "string", "pattern": "("}, "regex parse error: ( ^ error: unclosed group"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    ],
)
def test_a_schema_that_cannot_be_compiled(grammars: Grammars, schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProSparseError) as caught:
        grammars.matcher(json_grammar(schema), "response_format")
    assert str(caught.value) == f"response_format: cannot compile the JSON schema: {reason}"


CITY = {"$ref": "#/$defs/city"}
WEATHER = {"properties": {"city": CITY}, "required": ["city"], "additionalProperties": False, "type": "object"}
PARAMETERS = {"weather": {**WEATHER, "$defs": {"city": {"enum": ["Rome", "Zürich"]}}}, "time": None}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
WRONG = ROME.replace("Rome", "Bern")


def accepted(grammars: Grammars, tokenizer: Tokenizer, lark: str, text: str) -> bool:
    """Whether a text may be the whole answer."""
    matcher, size = grammars.matcher(lark, "tools"), tokenizer.get_vocab_size()
    for token in [*tokenizer.encode(text, add_special_tokens=False).ids, 1]:
        if matcher.complete:
            return token == 1
        if not np.isfinite(matcher.masked(np.zeros(size, np.float32))[token]):
            return False
        matcher.accept(token)
    return True


def make_tools(*strict: str) -> list[Tool]:
    made = [
        {"type": "function", "function": {"name": name, "parameters": parameters, "strict": name in strict}}
        for name, parameters in PARAMETERS.items()
    ]
    return [Tool.model_validate(tool) for tool in made]


NAMED: Any = {"type": "function", "function": {"name": "time"}}
TWO = f"{ROME}\n{TIME}"
CHOICES = [
    # choice, parallel, strict, schema of an answer, right texts, wrong texts
    ("required", True, (), None, [ROME, TIME, TWO], ["Rome", WRONG, f"So: {ROME}", f"{ROME} Done"]),
    ("required", False, (), None, [ROME, TIME], [TWO]),
    (NAMED, True, (), None, [TIME], [ROME, f"{TIME}\n{TIME}", "Noon"]),
    ("auto", True, ("weather",), None, ["Rome", f"So: {ROME}", TWO, f"{ROME} Done"], [WRONG, "<tool_call>Rome"]),
    ("auto", True, ("time",), None, ["Rome", WRONG], [TIME.replace("{}", '{"a": 1}')]),
    (None, False, (), None, ["Rome", ROME, WRONG, f"So: {ROME}"], [TWO]),
    ("auto", True, (), SCHEMA, ['{"n":7}', ROME, TWO], ["Rome", '{"n":8}', WRONG]),
]


@pytest.mark.parametrize(("choice", "parallel", "strict", "answer", "right", "wrong"), CHOICES)
def test_answers_that_call_tools(
    grammars: Grammars,
    tokenizer: Tokenizer,
    choice: Any,
    parallel: bool,
    strict: tuple[str],
    answer: Any,
    right: list[str],
    wrong: list[str],
) -> None:
    choice = choice if choice is None else TypeAdapter(ToolChoice).validate_python(choice)
    lark = tool_grammar(make_tools(*strict), choice, parallel=parallel, answer=answer)
    assert lark is not None
    assert [text for text in right if not accepted(grammars, tokenizer, lark, text)] == []
    assert [text for text in wrong if accepted(grammars, tokenizer, lark, text)] == []


def test_any_text_may_be_an_answer() -> None:
    assert tool_grammar(make_tools(), "auto", parallel=True, answer=None) is None


def test_a_long_reason_is_cut(grammars: Grammars) -> None:
    with pytest.raises(ProSparseError, match="cannot compile") as caught:
        grammars.matcher(json_grammar({"type": "a" * 5000}), "response_format")
    assert len(str(caught.value)) < 400
