"""Text for training from every kind of file, and which documents are held out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from support.training_models import byte_tokenizer

from prosparse_models.training import training_text
from prosparse_models.training.training_text import PackedText, TextSource, evaluation_rows

TEXTS = [f"document {k} says {'ab ' * k}" for k in range(120)]


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"content": TEXTS, "id": list(range(120))}), folder / "t.parquet")
        return folder / "t.parquet"
    if kind == "jsonl":
        path = folder / "t.jsonl"
        path.write_text("".join(json.dumps({"content": text, "id": 1}) + "\n" for text in TEXTS))
        return path
    for k, text in enumerate(TEXTS):
        (folder / f"{k:03}.{kind}").write_text(f"{text}\nsecond line\n")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt", "md"])
def test_every_kind_of_file_gives_its_documents(kind: str, tmp_path: Path) -> None:
    source = TextSource.find([write(tmp_path / kind, kind)], column="content")
    expected = TEXTS if kind in ("parquet", "jsonl") else [f"{text}\nsecond line\n" for text in TEXTS]
    assert [text.rstrip("\n") for text in source.documents()] == [text.rstrip("\n") for text in expected]
    shuffled = list(source.documents(seed=1))
    assert shuffled != list(source.documents())
    assert sorted(shuffled) == sorted(source.documents())


def test_a_folder_may_mix_kinds_and_columns_are_renamed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "deep", "txt")
    write(tmp_path / "a", "jsonl")
    (tmp_path / "a" / "picture.png").write_bytes(b"not text")
    assert len(list(TextSource.find([tmp_path / "a"], column="content").documents())) == 240


def test_one_document_in_fifty_is_held_out_by_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    parts = {held: set(TextSource.find([path], column="content", held_out=held).documents()) for held in (True, False)}
    by_hand = {t for t in TEXTS if int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") % 50 == 0}
    assert parts[True] == by_hand
    assert parts[True]
    assert parts[False] == set(TEXTS) - by_hand


@pytest.mark.parametrize("shuffled", [8, 2048])
def test_packed_rows_hold_all_tokens_of_an_epoch_once(
    shuffled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_text, "_SHUFFLED_ROWS", shuffled)
    source = TextSource.find([write(tmp_path, "jsonl")], column="content")
    tokenizer = byte_tokenizer()
    tokens = [i for text in TEXTS for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = evaluation_rows(source, tokenizer, 16, 10**9)
    assert torch.cat(rows).tolist() == tokens[: len(tokens) // 16 * 16]
    epoch = []
    for row in PackedText(source, tokenizer, 16, seed=3):
        assert torch.equal(row["input_ids"], row["labels"])
        epoch.append(row["input_ids"])
        if len(epoch) == len(rows):
            break
    left_out = len(tokens) % 16  # at most this many tokens of the shuffled order, and no token twice
    counts, all_counts = torch.cat(epoch).bincount(minlength=259), torch.tensor(tokens).bincount(minlength=259)
    assert (counts <= all_counts).all()
    assert int((all_counts - counts).sum()) == left_out
