"""Rows of one cache, each with its own text, against the decode loop that runs one text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prosparse_export import ProSparseError
from prosparse_export.runtime.decode_loop import decode_tokens
from prosparse_export.runtime.model import SparseModel, load
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.runtime.sampling import GREEDY, Sampler

PROMPTS = [list(range(10, 15)), list(range(40, 140)), [7], list(range(300, 333))]
NEW = 12


@pytest.fixture(scope="module")
def model(demo_artifact: Path) -> SparseModel:
    return load(demo_artifact, threads=1)


def alone(model: SparseModel, prompt: list[int]) -> list[int]:
    decoder = model.decoder(1, len(prompt) + NEW)
    return [int(row[0]) for row in decode_tokens(decoder, Sampler(GREEDY, 1), [prompt], NEW, ())]


def run(rows: RowBatch, firsts: list[int], steps: int) -> list[list[int]]:
    texts = [[token] for token in firsts]
    for _ in range(steps):
        for text, token in zip(texts, rows.step([text[-1] for text in texts]).argmax(-1), strict=True):
            text.append(int(token))
    return texts


def test_rows_of_different_lengths_decode_as_alone(model: SparseModel) -> None:
    rows = RowBatch(model, len(PROMPTS), 512)
    firsts = []
    for row, prompt in enumerate(PROMPTS):
        for begin in range(0, len(prompt), 32):
            logits = rows.prefill(row, prompt[begin : begin + 32])
        firsts.append(int(logits.argmax()))
    texts = run(rows, firsts, NEW - 1)
    assert texts == [alone(model, prompt) for prompt in PROMPTS]
    assert rows.lengths == [len(prompt) + NEW - 1 for prompt in PROMPTS]


def test_a_row_moves_and_another_takes_its_place(model: SparseModel) -> None:
    rows = RowBatch(model, 3, 512)
    first = int(rows.prefill(2, PROMPTS[1]).argmax())
    rows.prefill(0, PROMPTS[3])
    rows.move(2, 0)
    assert rows.lengths == [len(PROMPTS[1]), 0, 0]
    second = int(rows.prefill(1, PROMPTS[0]).argmax())
    assert run(rows, [first, second], NEW - 1) == [alone(model, PROMPTS[1]), alone(model, PROMPTS[0])]


def test_copied_keys_and_values_replace_a_prompt(model: SparseModel) -> None:
    rows = RowBatch(model, 2, 512)
    rows.prefill(0, PROMPTS[1])
    rows.write(1, rows.read(0, 0, 64))
    first = int(rows.prefill(1, PROMPTS[1][64:]).argmax())
    rows.move(1, 0)
    assert run(rows, [first], NEW - 1) == [alone(model, PROMPTS[1])]


def test_buffers_grow_up_to_the_capacity(model: SparseModel) -> None:
    rows = RowBatch(model, 2, 300)
    short, long = PROMPTS[0], [5 + i % 90 for i in range(290)]
    firsts = [int(rows.prefill(0, short).argmax())]
    before = run(rows, firsts, 2)[0]
    firsts = [before[-1], int(rows.prefill(1, long).argmax())]  # beyond the first buffers
    texts = run(rows, firsts, 9)
    assert before + texts[0][1:] == alone(model, short)
    assert texts[1] == alone(model, long)[:10]
    rows.step([1, 1])
    with pytest.raises(ProSparseError, match="context: expected at most 300 tokens, got 301"):
        rows.step([1, 1])


def test_bytes_of_a_token(model: SparseModel) -> None:
    rows = RowBatch(model, 2, 300)
    rows.prefill(0, PROMPTS[0])
    block = rows.read(0, 0, 5)
    assert sum(part.nbytes for part in block) == 5 * rows.token_bytes
    assert all(np.isfinite(part.astype(np.float32)).all() for part in block)


def test_unfused_attention_is_refused(unfused_demo_artifact: Path) -> None:
    with pytest.raises(ProSparseError, match="got unfused attention") as caught:
        RowBatch(load(unfused_demo_artifact, threads=1), 2, 128)
    assert "--attention" in (caught.value.hint or "")
