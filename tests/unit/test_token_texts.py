"""Log probabilities of tokens that are parts of a character: their bytes, and names that differ."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prosparse_export.serve.answers import Answer, Choice
from prosparse_export.serve.job import Done, TokenLogprobs
from prosparse_export.serve.token_texts import TokenTexts

EMOJI = "\U0001f642"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end of text|>", special=True)])
    return made


def byte_fallback() -> Tokenizer:
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    vocabulary = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_every_byte_has_its_token(make: Any) -> None:
    tokenizer = make()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(EMOJI).ids
    assert [texts.utf8(token) for token in ids] == [bytes([byte]) for byte in EMOJI.encode()]
    assert [texts.text(token, "bytes:") for token in ids] == [f"bytes:\\x{byte:02x}" for byte in EMOJI.encode()]


def test_texts_in_the_middle_of_a_text() -> None:
    tokenizer, texts = byte_fallback(), TokenTexts(byte_fallback())
    assert [texts.text(tokenizer.token_to_id(name)) for name in ("\u2581a", "a", "<0x0A>")] == [" a", "a", "\n"]
    tokenizer, texts = byte_level(), TokenTexts(byte_level())
    (end,) = tokenizer.encode("<|end of text|>").ids
    assert (texts.text(end), texts.utf8(end)) == ("<|end of text|>", b"<|end of text|>")
    assert [texts.utf8(token) for token in tokenizer.encode("\u00ad\n\u00a0").ids] == [
        bytes([byte]) for byte in "\u00ad\n\u00a0".encode()
    ]


def choice_of(tokenizer: Tokenizer, text: str, *, chat: bool) -> Any:
    ids = tokenizer.encode(text).ids
    told = [TokenLogprobs((token, -0.5), tuple((other, -1.0) for other in ids)) for token in ids]
    answer = Answer("words", TokenTexts(tokenizer), chat=chat, logprobs=True)
    return answer.whole([Choice(text, told, Done("stop", len(ids), 0))], 1)["choices"][0]["logprobs"]


def test_the_tokens_of_a_completion() -> None:
    told = choice_of(byte_level(), f"a{EMOJI}b", chat=False)
    parts = [f"bytes:\\x{byte:02x}" for byte in EMOJI.encode()]
    assert told["tokens"] == ["a", *parts, "b"]
    assert told["text_offset"] == [0, 1, 1, 1, 1, 2]
    assert list(told["top_logprobs"][0]) == ["a", *parts, "b"]  # none of them replaces another


def test_the_bytes_of_a_chat() -> None:
    content = choice_of(byte_level(), f"a{EMOJI}", chat=True)["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == f"a{EMOJI}"
    assert content[1]["token"] == "\\xf0"
    assert content[1]["top_logprobs"][1]["bytes"] == [0xF0]
