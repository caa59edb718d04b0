"""The text that models are compared on: the bundled one, and windows of any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from prosparse_export.text.files import Document, read_text, tokenize

__all__ = ["Document", "Window", "default_text", "read_text", "tokenize", "windows"]

BUNDLED = "bundled: Wikipedia introductions"


@dataclass(frozen=True)
class Window:
    """A run of tokens that a model sees at once.

    Attributes:
        document: which text.
        ids: the tokens, ``[tokens]``.
        first: the first of them that counts; those before are context only.
        targets: for the tokens from ``first`` on, the token that follows in the text; -1 at its end.
    """

    document: int
    ids: NDArray[np.int64]
    first: int
    targets: NDArray[np.int64]


def default_text() -> str:
    """Return the bundled text: Wikipedia introductions that the demo model was not trained on."""
    return (files("prosparse_export") / "text" / "heldout_wikipedia.txt").read_text(encoding="utf-8")


def windows(documents: Iterable[Document], context: int, stride: int) -> Iterator[Window]:
    """Yield windows of ``context`` tokens, ``stride`` apart, that count every token once.

    A window never spans two texts. All but a text's first have at least ``context - stride`` tokens of
    context before the first token that counts.
    """
    for number, document in enumerate(documents):
        ids, counted = document.ids, 0
        following = np.append(ids[1:], -1)
        for begin in range(0, len(ids), stride):
            end = min(begin + context, len(ids))
            yield Window(number, ids[begin:end], counted - begin, following[counted:end])
            counted = end
            if end == len(ids):
                break
