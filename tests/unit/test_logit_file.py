"""Logit files: contents, the safetensors format, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.validations import random_logits

from prosparse_export.errors import ProSparseError
from prosparse_export.validation.logit_file import LogitFile, LogitWriter


def write(target: Path | None, scratch: Path, rows: NDArray[np.float32]) -> LogitFile:
    small: dict[str, NDArray[Any]] = {"prompt.0.greedy": np.arange(5), "prompt.0.logits": rows[:3]}
    writer = LogitWriter(target, scratch, {"texts": "t"}, small, len(rows), rows.shape[1])
    writer.add(rows[:70])
    writer.add(rows[70:])
    return writer.finish()


@pytest.mark.parametrize("named", [True, False])
def test_logit_file_gives_back_what_went_in(named: bool, tmp_path: Path) -> None:
    rows = random_logits(0)
    file = write(tmp_path / "x.ref" if named else None, tmp_path, rows)
    np.testing.assert_array_equal(file.logits(60, 30), rows[60:90])
    np.testing.assert_array_equal(file.tensor("prompt.0.greedy"), np.arange(5))
    np.testing.assert_array_equal(file.tensor("prompt.0.logits"), rows[:3])
    assert file.metadata["texts"] == "t"
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == (["x.ref"] if named else [])


def test_logit_file_is_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path / "x.ref", tmp_path, random_logits(0)).close()
    np.testing.assert_array_equal(load_file(tmp_path / "x.ref")["logits"], random_logits(0))


@pytest.mark.parametrize(
    ("cut", "text"), [(-1, "is truncated"), (4, "not a file written by"), (-50_000, "not a file written by")]
)
def test_damaged_logit_file(cut: int, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ref"
    write(path, tmp_path, random_logits(0)).close()
    data = path.read_bytes()
    path.write_bytes(data[:cut] if cut != -50_000 else b"\xff" * 100 + data)
    with pytest.raises(ProSparseError, match=text) as caught:
        LogitFile.open(path)
    assert caught.value.hint is not None
