"""The tokenizer next to a graph: saved in the fast format, or copied if transformers cannot do that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.training_models import byte_tokenizer

from prosparse_export.export import sidecars
from prosparse_models import CheckpointError

FAILURES = [CheckpointError("x", "y"), OSError("x"), ValueError("x"), ImportError("x")]


def test_a_tokenizer_is_saved(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    sidecars._write_tokenizer(tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("fails_in", ["load", "save"])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_tokenizer_that_cannot_be_saved_is_copied(
    failure: Exception, fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise failure

    loaded = SimpleNamespace(save_pretrained=fail)
    monkeypatch.setattr(sidecars, "load_tokenizer", fail if fails_in == "load" else lambda _: loaded)
    folder, target = tmp_path / "model", tmp_path / "out"
    for path in (folder, target):
        path.mkdir()
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer.py", "config.json"):
        (folder / name).write_text(name)
    sidecars._write_tokenizer(folder, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        name: name for name in ("tokenizer.json", "tokenizer.model")
    }
