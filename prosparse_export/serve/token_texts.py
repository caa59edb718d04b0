"""Texts and bytes of single tokens, for log probabilities: a token may be a part of a character."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer

__all__ = ["TokenTexts"]

_BYTE = re.compile("<0x([0-9A-F]{2})>")  # byte fallback's name of a byte
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(0x100) if byte not in _PRINTED)
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
"""The byte that a character of a byte-level vocabulary stands for (GPT-2's encoder.py)."""


class TokenTexts:
    """What each token of a tokenizer writes in the middle of a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = str(tokenizer.decoder)
        self._byte_level, self._byte_fallback = "ByteLevel" in decoder, "ByteFallback" in decoder
        self._find = lru_cache(maxsize=4096)(self._text_and_bytes)

    def utf8(self, token: int) -> bytes:
        """Return a token's bytes in UTF-8: not always whole characters."""
        return self._find(token)[1]

    def text(self, token: int, prefix: str = "") -> str:
        r"""Return a token's text; if it is no text alone, ``prefix`` and its bytes as ``\x..``, as OpenAI does."""
        text, raw = self._find(token)
        return text if text is not None else prefix + "".join(f"\\x{byte:02x}" for byte in raw)

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return for each token the number of characters that are complete before it."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        found, count = [], 0
        for token in tokens:
            found.append(count)
            count += len(decoder.decode(self.utf8(token)))
        return found

    def _text_and_bytes(self, token: int) -> tuple[str | None, bytes]:
        raw = self._raw(self._tokenizer.id_to_token(token) or "")
        if raw is not None:
            try:
                return raw.decode(), raw
            except UnicodeDecodeError:
                return None, raw
        # Tokenizers drop the space before a first word
        once = self._tokenizer.decode([token], skip_special_tokens=False)
        text = self._tokenizer.decode([token, token], skip_special_tokens=False)[len(once) :]
        return text, text.encode()

    def _raw(self, name: str) -> bytes | None:
        """Return the bytes that a token's name spells, or None if it is spelled as text."""
        if self._byte_fallback and (found := _BYTE.fullmatch(name)):
            return bytes([int(found[1], 16)])
        if self._byte_level and name and all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        return None
