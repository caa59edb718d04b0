"""Tokens become text piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

__all__ = ["TextStream"]


class TextStream:
    """The text of one row as it comes.

    A piece never cuts a character, and never shows what may turn out to be the beginning of a stop string.

    Args:
        tokenizer: decodes; special tokens give no text.
        stop: strings that end the text; they are not shown.

    Attributes:
        ended: a stop string has come.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.ended = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain now."""
        if self.ended:
            return ""
        text = self._held + (self._decoder.step(self._tokenizer, token) or "")
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.ended, self._held = True, ""
            return text[: min(found)]
        begin = min((_begin(text, stop) for stop in self._stop), default=len(text))
        self._held = text[begin:]
        return text[:begin]

    def end(self) -> str:
        """Return what was held back: no more tokens come."""
        text, self._held, self.ended = self._held, "", True
        return text


def _begin(text: str, stop: str) -> int:
    """Return where the longest end of ``text`` begins that ``stop`` begins with."""
    for at in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[at:]):
            return at
    return len(text)
