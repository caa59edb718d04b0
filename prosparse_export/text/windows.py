"""The bundled text, and windows over tokenized text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from prosparse_export.text.files import Document

__all__ = ["BUNDLED", "Window", "default_text", "windows"]

BUNDLED = "bundled Wikipedia introductions"


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one text that a model sees at once.

    Attributes:
        document: index of the text.
        ids: token ids, ``[tokens]``.
        first: index of the first token that counts; earlier tokens are context.
        targets: the next token in the text for each token from ``first`` on; -1 at the end of the text.
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

    A window never spans two texts. Except for a text's first window, at least ``context - stride`` tokens of context
    precede the first token that counts.
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
