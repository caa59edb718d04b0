"""Read and tokenize the user's text files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prosparse_export.errors import ProSparseError
from prosparse_export.quiet import quiet

__all__ = ["Document", "read_text", "tokenize"]

_LEAST = 16  # tokens; fewer are too few to measure anything
_LONGEST_TOKEN = 24  # characters per token, on average over a text; text beyond that is not tokenized


@dataclass(frozen=True)
class Document:
    """A tokenized text.

    Attributes:
        name: name to report.
        ids: token ids, ``[tokens]``.
    """

    name: str
    ids: NDArray[np.int64]

    @property
    def sha256(self) -> str:
        """SHA-256 of the token ids, which depends on the text and on the tokenizer."""
        return hashlib.sha256(np.ascontiguousarray(self.ids, "<i8").tobytes()).hexdigest()


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ProSparseError: the file cannot be read, is empty, binary or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProSparseError(
            f"text: {path}: expected a text file, got {error.strerror}", hint="check the path"
        ) from error
    if not data.strip():
        raise ProSparseError(f"text: {path}: expected text, got an empty file", hint="choose another file")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ProSparseError(
            f"text: {path}: expected UTF-8, got UTF-16", hint=f"convert it: iconv -f UTF-16 -t UTF-8 {path} > mine.txt"
        )
    if b"\0" in data:
        raise ProSparseError(f"text: {path}: expected text, got binary data", hint="choose a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProSparseError(
            f"text: {path}: expected UTF-8, got another encoding (byte {data[error.start]:#04x} at {error.start})",
            hint=f"convert it, for example: iconv -f ISO-8859-1 -t UTF-8 {path} > mine.txt",
        ) from error


def tokenize(tokenizer, texts: Sequence[tuple[str, str]], max_tokens: int) -> list[Document]:  # type: ignore[no-untyped-def]
    """Tokenize (name, text) pairs, keeping up to ``max_tokens / len(texts)`` tokens of each.

    Raises:
        ProSparseError: a text has fewer than 16 tokens.
    """
    share = max(max_tokens // len(texts), _LEAST)
    documents = []
    for name, text in texts:
        with quiet():
            ids = np.asarray(tokenizer(text[: share * _LONGEST_TOKEN])["input_ids"], np.int64)[:share]
        if len(ids) < _LEAST:
            raise ProSparseError(
                f"text: {name}: expected at least {_LEAST} tokens, got {len(ids)}", hint="use a longer text"
            )
        documents.append(Document(name, ids))
    return documents
