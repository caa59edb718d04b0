"""Caches as long as the sliding window: the tokens and bits of caches that keep everything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from support.model_sizes import grouped
from transformers import PreTrainedModel

from prosparse_export import ExportOptions, export_model, load
from prosparse_export.runtime import decode_loop
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.row_batch import RowBatch
from prosparse_export.validation import ValidationOptions, validate

pytestmark = pytest.mark.integration
WINDOW, CONTEXT, PROMPT, NEW = 600, 3200, 2800, 40
VOCAB = 4096
SLOTS = 1536  # the window and a chunk's 511 other tokens, rounded up to a multiple of 512
S, F = "sliding_attention", "full_attention"
SIZES = {
    **grouped(sliding_window=WINDOW),
    "max_position_embeddings": CONTEXT,
    "num_hidden_layers": 2,
    "vocab_size": VOCAB,
}


def mistral() -> PreTrainedModel:
    return hf.MistralForCausalLM(hf.MistralConfig(**SIZES, hidden_act="relu"))


def gemma3() -> PreTrainedModel:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, hidden_activation="relu", layer_types=[S, F]))


@pytest.fixture(scope="module", params=[(mistral, []), (gemma3, [1])], ids=["Mistral", "Gemma 3"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> tuple[Path, Path, list[int]]:
    """The model folder, the artifact, and the layers with global attention."""
    make, whole = request.param
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    make().save_pretrained(folder)
    for file in demo_folder.glob("token*"):
        shutil.copy(file, folder)
    path = export_model(folder, folder / "out" / "m.onnx", ExportOptions(kv_cache="i8-token")).path
    return folder, path, whole


def continued(model: SparseModel, prompt: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """The logits of a prompt and of greedy steps, and the slots of each cache."""
    decoder = model.decoder(1, CONTEXT)
    logits = [decoder.prefill(prompt[None], np.ones((1, len(prompt)), np.int64))[0].copy()]
    for _ in range(NEW):
        logits.append(decoder.step(logits[-1].argmax(keepdims=True))[0].copy())
    return np.stack(logits), {name: array.shape[2] for name, array in decoder._buffers.arrays.items()}


def test_the_same_bits_in_less_memory(exported: tuple[Path, Path, list[int]]) -> None:
    _, path, whole = exported
    model = load(path, threads=2)
    prompt = np.random.default_rng(0).integers(3, VOCAB, PROMPT)
    logits, slots = continued(model, prompt)
    for name, found in slots.items():
        layer = int(name.split(".")[1])
        assert found > PROMPT if layer in whole else found == SLOTS, name
    rows = RowBatch(model, 1, CONTEXT)  # keeps all tokens
    for begin in range(0, PROMPT, PREFILL_TOKENS):
        last = rows.prefill(0, prompt[begin : begin + PREFILL_TOKENS].tolist())
    expected = [last]
    for _ in range(NEW):
        expected.append(rows.step([int(expected[-1].argmax())])[0].copy())
    np.testing.assert_array_equal(logits, np.stack(expected))
    tokens = logits[:-1].argmax(-1)
    again, _ = model.forward(np.concatenate([prompt, tokens])[None], np.ones((1, PROMPT + NEW), np.int64))
    np.testing.assert_allclose(logits, again[0, PROMPT - 1 :], rtol=0, atol=2e-2 * np.abs(logits).max())


def test_batches_of_long_and_short_texts(exported: tuple[Path, Path, list[int]]) -> None:
    model = load(exported[1], threads=1)
    prompts = [np.random.default_rng(n).integers(3, VOCAB, n).tolist() for n in (1700, 30, 601)]
    together = list(model.stream(prompts, max_new_tokens=NEW))
    for row, prompt in enumerate(prompts):
        alone = list(model.stream([prompt], max_new_tokens=NEW))
        assert [int(token[row]) for token in together[: len(alone)]] == [int(token[0]) for token in alone]


def test_validation_steps_beyond_the_window(exported: tuple[Path, Path, list[int]]) -> None:
    folder, path, _ = exported
    result = validate(folder, path, ValidationOptions(tokens=800, context=800, greedy=8, step_tokens=700))
    assert result.passed, [check for check in result.checks if not check.passed]


def test_a_displaced_token_changes_the_logits(
    exported: tuple[Path, Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above sees a buffer whose tokens are in other slots."""
    model = load(exported[1], threads=1)
    prompt = np.random.default_rng(0).integers(3, VOCAB, PROMPT)
    logits, _ = continued(model, prompt)
    monkeypatch.setattr(decode_loop, "CacheBuffers", _Shifted)
    shifted, _ = continued(model, prompt)
    assert not np.array_equal(logits, shifted)


class _Shifted(decode_loop.CacheBuffers):
    """Buffers whose tokens move by a slot when they grow."""

    def reserve(self, tokens: int) -> bool:
        moved = super().reserve(tokens)
        if moved:
            self.arrays = {name: np.roll(array, 1, 2) for name, array in self.arrays.items()}
        return moved
