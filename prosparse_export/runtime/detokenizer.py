"""Turn tokens into text piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from prosparse_export.errors import ProSparseError

__all__ = ["Detokenizer", "partial_match", "stop_strings"]


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Return one or more stop strings as a tuple.

    Raises:
        ProSparseError: a string is empty.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not string for string in strings):
        raise ProSparseError("stop: expected non-empty strings", hint="remove the empty string")
    return strings


class Detokenizer:
    """The text of one sequence as its tokens arrive.

    A piece never splits a character, and never shows what may be the beginning of a stop string.

    Args:
        tokenizer: decodes tokens; special tokens have no text.
        stop: strings that end the text; they are not returned.

    Attributes:
        ended: a stop string has been found, or `end` was called.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.ended = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        if self.ended:
            return ""
        text = self._held + (self._decoder.step(self._tokenizer, token) or "")
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.ended, self._held = True, ""
            return text[: min(found)]
        begin = min((partial_match(text, stop) for stop in self._stop), default=len(text))
        self._held = text[begin:]
        return text[:begin]

    def end(self) -> str:
        """End the text and return what was held back."""
        text, self._held, self.ended = self._held, "", True
        return text


def partial_match(text: str, stop: str) -> int:
    """Return the start of the longest suffix of ``text`` that is a prefix of ``stop``, or the length of ``text``."""
    for at in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[at:]):
            return at
    return len(text)
