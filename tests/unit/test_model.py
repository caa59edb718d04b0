"""Opening and running a model: the hints of its errors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prosparse_export import ProSparseError
from prosparse_export.runtime import model


class FakeSession:
    """A session with the given inputs, which fails in every run."""

    def __init__(self, *inputs: str) -> None:
        self._inputs = [SimpleNamespace(name=name, shape=[1, 1]) for name in inputs]

    def get_inputs(self) -> list[Any]:
        return self._inputs

    def run(self, *_: Any) -> None:
        raise RuntimeError("of onnxruntime")


def test_the_decoder_of_an_encoder_decoder_names_the_class_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession("input_ids", "encoder_attention_mask")
    monkeypatch.setattr(model, "open_session", lambda *_, **__: session)
    with pytest.raises(ProSparseError, match="got the decoder of an encoder-decoder") as caught:
        model.load(tmp_path / "m.onnx")
    module, _, name = (caught.value.hint or "").split()[-1].rpartition(".")
    assert getattr(import_module(module), name).__name__ == "EncoderDecoder"


def test_a_failed_run_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "open_session", lambda *_, **__: FakeSession("input_ids"))
    loaded = model.load(tmp_path / "m.onnx")
    with pytest.raises(ProSparseError, match="of onnxruntime") as caught:
        loaded.forward(np.ones((1, 3), np.int64), np.ones((1, 3), np.int64))
    assert "mask [batch, past + sequence]" in (caught.value.hint or "")
