"""Opening and running a model: the hints of its errors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.manifests import SMALL

from prosparse_export import ProSparseError
from prosparse_export.artifact.manifest import write_manifest
from prosparse_export.runtime import model
from prosparse_export.runtime.cache import CacheInput


class FakeSession:
    """A session with the given inputs, which fails in every run."""

    def __init__(self, *inputs: str) -> None:
        self._inputs = [SimpleNamespace(name=name, shape=[1, 1]) for name in inputs]

    def get_inputs(self) -> list[Any]:
        return self._inputs

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={})

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


def test_an_optimized_file_is_not_called_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, SMALL)
    monkeypatch.setattr(model, "open_session", lambda *_, **__: FakeSession("x"))
    loaded = model.load(tmp_path / "m.onnx")
    for run in (lambda: loaded.stream_text("hello"), lambda: loaded.decoder(1, 8)):
        with pytest.raises(ProSparseError, match="got a file from `prosparse optimize` with the inputs x") as caught:
            run()
        assert "onnxruntime session" in str(caught.value.hint)


def test_the_hint_at_the_context_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16}')
    monkeypatch.setattr(model, "open_session", lambda *_, **__: FakeSession("past_key_values.0.key"))
    monkeypatch.setattr(model, "cache_inputs", lambda _: {"past_key_values.0.key": CacheInput(1, 1)})
    with pytest.raises(ProSparseError, match="expected at most 16 tokens") as caught:
        model.load(tmp_path / "m.onnx").stream([[5] * 4], max_new_tokens=100)
    assert caught.value.hint == "set max_new_tokens (-n) to at most 12"
