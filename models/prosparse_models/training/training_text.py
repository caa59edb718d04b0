"""Text for training and evaluation: streamed from files, tokenized and packed into rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from prosparse_models.errors import TrainingError

__all__ = ["PackedText", "TextSource", "evaluation_rows"]

_BUILDERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SHUFFLED_DOCUMENTS = 10_000  # datasets' shuffle buffer
_SHUFFLED_ROWS = 2_048  # mixes the rows of long documents
_HELD_OUT_OF = 50


@dataclass(frozen=True)
class TextSource:
    """Text files.

    Attributes:
        files: .txt and .md (one document each), .jsonl, .json and .parquet (one document per row).
        column: the text column of the latter.
        held_out: None: all documents; True: one in 50, by the hash of its text; False: the others.
    """

    files: tuple[Path, ...]
    column: str = "text"
    held_out: bool | None = None

    @staticmethod
    def find(paths: Sequence[Path], *, column: str = "text", held_out: bool | None = None) -> TextSource:
        """Return the source for ``paths``: files, or folders searched for files of a known type.

        Raises:
            TrainingError: a path does not exist, or has no file of a known type.
        """
        known = ", ".join(_BUILDERS)
        files: list[Path] = []
        for path in paths:
            if path.is_dir():
                found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _BUILDERS and p.is_file())
            else:
                found = [path] if path.is_file() and path.suffix.lower() in _BUILDERS else []
            if not found:
                problem = (
                    f"expected a text file ({known}), got {f'a {path.suffix} file' if path.suffix else 'no extension'}"
                )
                hint = "rename or convert it"
                if not path.exists():
                    problem, hint = "no such file or folder", "check the path"
                elif path.is_dir():
                    problem, hint = (
                        f"the folder contains no text files ({known})",
                        "choose another folder, or pass text files",
                    )
                raise TrainingError(f"text: {path}: {problem}", hint=hint)
            files.extend(found)
        return TextSource(tuple(files), column, held_out)

    def documents(self, seed: int | None = None) -> Iterator[str]:
        """Yield the documents, streamed; shuffled if ``seed`` is given.

        Raises:
            TrainingError: a file cannot be read, or has no such column.
        """
        try:
            stream = self._stream()
            if seed is not None:
                stream = stream.shuffle(seed=seed, buffer_size=_SHUFFLED_DOCUMENTS)
            for row in stream:
                text = row["text"]
                if isinstance(text, str) and text.strip() and self._wants(text):
                    yield text
        except TrainingError:
            raise
        except Exception as error:  # errors of datasets, pyarrow and json
            cause = error.__cause__ or error
            raise TrainingError(
                f"text: {self.files[0]}{' ...' if len(self.files) > 1 else ''}: cannot be read: "
                f"{' '.join(str(cause).split()) or type(cause).__name__}",
                hint=f"expected UTF-8, and a column {self.column!r} in .json, .jsonl and .parquet (--text-column)",
            ) from error

    def _stream(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        parts = []
        for builder in dict.fromkeys(_BUILDERS.values()):
            files = [
                str(path) for path in self.files if _BUILDERS[path.suffix.lower()] == builder and path.stat().st_size
            ]
            if not files:
                continue
            options = {"sample_by": "document"} if builder == "text" else {}
            part = datasets.load_dataset(builder, data_files=files, split="train", streaming=True, **options)
            column = "text" if builder == "text" else self.column
            first = next(iter(part), None)
            if first is not None and column not in first:
                raise TrainingError(
                    f"text: {files[0]}: expected a column {column!r}, got {', '.join(first)}",
                    hint="name it with --text-column",
                )
            if first is not None:
                part = part.select_columns([column])
                parts.append(part if column == "text" else part.rename_column(column, "text"))
        if not parts:
            raise TrainingError(f"text: {self.files[0]}: expected text, got empty files", hint="pass other files")
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)

    def _wants(self, text: str) -> bool:
        if self.held_out is None:
            return True
        bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % _HELD_OUT_OF
        return (bucket == 0) == self.held_out


def _packed(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, context: int) -> Iterator[torch.Tensor]:
    """Join the documents' tokens, each document ending with the end token, and cut rows of ``context``."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pending: list[int] = []
    for text in texts:
        pending.extend([*tokenizer(text, verbose=False)["input_ids"], *end])
        whole = len(pending) // context * context
        for first in range(0, whole, context):
            yield torch.tensor(pending[first : first + context])
        pending = pending[whole:]


class PackedText(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of rows of ``context`` tokens, in an order that depends on ``seed`` and the epoch only.

    Each row is ``{"input_ids": [context], "labels": [context]}``, int64. Documents follow one another, each ending with
    the end token; an incomplete row at the end of an epoch is dropped.

    Raises:
        TrainingError: on iteration, if the text does not fill one row.
    """

    def __init__(self, source: TextSource, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> None:
        self._source, self._tokenizer, self._context, self._seed = source, tokenizer, context, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield rows."""
        for epoch in count():
            rows = 0
            rng = random.Random(f"{self._seed} {epoch}")
            documents = self._source.documents(seed=rng.randrange(2**31))
            for row in _shuffled(_packed(documents, self._tokenizer, self._context), rng):
                rows += 1
                yield {"input_ids": row, "labels": row}
            if rows == 0:
                raise _too_short(self._source, self._context)


def _shuffled(rows: Iterable[torch.Tensor], rng: random.Random) -> Iterator[torch.Tensor]:
    buffer: list[torch.Tensor] = []
    for row in rows:
        if len(buffer) < _SHUFFLED_ROWS:
            buffer.append(row)
        else:
            index = rng.randrange(len(buffer))
            yield buffer[index]
            buffer[index] = row
    rng.shuffle(buffer)
    yield from buffer


def evaluation_rows(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, context: int, tokens: int
) -> list[torch.Tensor]:
    """Return the first ``tokens`` of ``source`` in rows of ``context``, rounded down to at least one row.

    Raises:
        TrainingError: the text does not fill one row.
    """
    rows: list[torch.Tensor] = []
    for row in _packed(source.documents(), tokenizer, context):
        rows.append(row)
        if (len(rows) + 1) * context > tokens:
            break
    if not rows:
        raise _too_short(source, context)
    return rows


def _too_short(source: TextSource, context: int) -> TrainingError:
    name = f"{source.files[0]}{' ...' if len(source.files) > 1 else ''}"
    if source.held_out:
        return TrainingError(
            f"text: {name}: expected at least {context} tokens of held-out documents (one document in {_HELD_OUT_OF})",
            hint="pass evaluation text with --eval-text",
        )
    return TrainingError(
        f"text: {name}: expected at least one sequence of {context} tokens",
        hint="pass more text, or a shorter context (calibrate: --context, sparsify: --set training.context)",
    )
