"""Generation with bound buffers, against a loop over forward() and against PyTorch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prosparse_export import ProSparseError, load
from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.sampling import Sampling
from prosparse_export.validation.exactness import pad_left
from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
NEW = 40


@pytest.fixture(scope="module")
def model(demo_artifact: Path) -> SparseModel:
    return replace(load(demo_artifact, threads=1), stop=frozenset())


@pytest.fixture(scope="module")
def unfused(unfused_demo_artifact: Path) -> SparseModel:
    return replace(load(unfused_demo_artifact, threads=1), stop=frozenset())


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(3, 4000, length).tolist() for length in lengths]


def stepwise(model: SparseModel, texts: list[list[int]], count: int) -> tuple[NDArray[np.int64], Cache]:
    """The loop that anyone would write: everything allocated anew for each token."""
    ids, mask = pad_left([np.asarray(text, np.int64) for text in texts])
    cache: Cache | None = None
    tokens = []
    for _ in range(count):
        logits, cache = model.forward(ids, mask, cache)
        tokens.append(logits[:, -1].argmax(-1))
        ids, mask = tokens[-1][:, None], np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
    assert cache is not None
    return np.stack(tokens, 1), cache


def streamed(model: SparseModel, texts: list[list[int]], count: int) -> NDArray[np.int64]:
    return np.stack(list(model.stream(texts, max_new_tokens=count)), 1)


@pytest.mark.parametrize("lengths", [(1,), (17,), (11, 5, 8), (1, 30)])
@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_tokens_are_those_of_a_loop_over_forward(
    attention: str, lengths: tuple[int, ...], model: SparseModel, unfused: SparseModel
) -> None:
    subject = model if attention == "fused" else unfused
    assert subject.in_place == (attention == "fused")
    texts = prompts(*lengths)
    expected, _ = stepwise(subject, texts, NEW)
    np.testing.assert_array_equal(streamed(subject, texts, NEW), expected)
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_tokens_are_pytorchs(attention: str, demo_folder: Path, model: SparseModel, unfused: SparseModel) -> None:
    reference = load_checkpoint(demo_folder).model
    (text,) = prompts(20)
    with torch.no_grad():
        whole = reference.generate(torch.tensor([text]), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)
    actual = streamed(model if attention == "fused" else unfused, [text], NEW)
    # min_new_tokens forbids the end token in PyTorch, so compare up to where we took it
    end = next((i for i, token in enumerate(actual[0]) if token == 1), NEW)
    assert end > 5
    np.testing.assert_array_equal(actual[0, :end], whole[0, len(text) :][:end].numpy())


def test_the_cache_is_written_in_place(model: SparseModel) -> None:
    texts = prompts(11, 5, 8)
    ids, mask = pad_left([np.asarray(text, np.int64) for text in texts])
    decoder = model.decoder(3, 11 + NEW)
    tokens = [decoder.prefill(ids, mask).argmax(-1)]
    caches = dict(decoder._cache)
    before = {name: value.data_ptr() for name, value in caches.items()}
    for _ in range(NEW - 1):
        tokens.append(decoder.step(tokens[-1]).argmax(-1))
    expected, cache = stepwise(model, texts, NEW)
    np.testing.assert_array_equal(np.stack(tokens, 1), expected)
    assert {name: value.data_ptr() for name, value in decoder._cache.items()} == before
    for name, value in caches.items():
        for row, text in enumerate(texts):
            used = len(text) + NEW - 1
            np.testing.assert_array_equal(value.numpy()[row, :, :used], cache.values[name][row, :, :used])


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_a_long_prompt_runs_in_chunks(attention: str, model: SparseModel, unfused: SparseModel) -> None:
    subject = model if attention == "fused" else unfused
    (text,) = prompts(2 * PREFILL_TOKENS + 100)
    ids = np.asarray([text], np.int64)
    expected, _ = subject.forward(ids, np.ones_like(ids))
    actual = subject.decoder(1, len(text)).prefill(ids, np.ones_like(ids))
    # Parts change the order of sums; see docs/guides/validate.md for the bound on the demo's logits.
    assert np.abs(actual - expected[:, -1]).max() <= 1e-3
    assert not np.array_equal(actual, expected[:, 0])
    np.testing.assert_array_equal(streamed(subject, [text], 20), stepwise(subject, [text], 20)[0])


def test_several_tokens_continue_a_batch(model: SparseModel, unfused: SparseModel) -> None:
    ids, mask = pad_left([np.asarray(text, np.int64) for text in prompts(30, 17, 25)])
    mask[:, 20:] = 1
    for subject in (model, unfused):
        expected, whole = subject.forward(ids, mask)
        _, cache = subject.forward(ids[:, :20], mask[:, :20])
        logits, cache = subject.forward(ids[:, 20:], mask, cache)
        # Sums of attention in another order, on logits of about 10; see docs/guides/validate.md.
        assert np.abs(logits - expected[:, 20:]).max() <= 1e-3
        assert {name: array.shape for name, array in cache.values.items()} == {
            name: array.shape for name, array in whole.values.items()
        }


def test_texts_of_one_model_do_not_disturb_each_other(model: SparseModel) -> None:
    (one,), (two,) = prompts(9), prompts(21)
    alone = [streamed(model, [text], NEW) for text in (one, two)]
    both = zip(model.stream([one], max_new_tokens=NEW), model.stream([two], max_new_tokens=NEW), strict=True)
    together = np.stack([np.concatenate(pair) for pair in both], 1)
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_a_batch_of_texts(demo_artifact: Path) -> None:
    model = load(demo_artifact, threads=1)
    texts = ["The city of Paris is", "In 1905,", "Water"]
    together = model.generate_batch(texts, max_new_tokens=24)
    assert together == [model.generate(text, max_new_tokens=24) for text in texts]
    assert len(set(together)) == 3


def test_stop_strings_and_pieces(demo_artifact: Path) -> None:
    model = load(demo_artifact, threads=1)
    whole = model.generate("The city of Paris is", max_new_tokens=32)
    assert "".join(model.stream_text("The city of Paris is", max_new_tokens=32)) == whole
    word = whole.split()[3]
    assert model.generate("The city of Paris is", max_new_tokens=32, stop=word) == whole[: whole.index(word)]


def test_sampling_options_reach_the_choice(model: SparseModel) -> None:
    (text,) = prompts(9)
    greedy = streamed(model, [text], NEW)
    narrow = np.stack(list(model.stream([text], max_new_tokens=NEW, sampling=Sampling(1.0, top_k=1, seed=0))), 1)
    nucleus = np.stack(list(model.stream([text], max_new_tokens=NEW, sampling=Sampling(1.0, top_p=1e-6, seed=0))), 1)
    free = np.stack(list(model.stream([text], max_new_tokens=NEW, sampling=Sampling(1.0, seed=0))), 1)
    np.testing.assert_array_equal(narrow, greedy)
    np.testing.assert_array_equal(nucleus, greedy)
    assert not np.array_equal(free, greedy)


def test_context_empty_prompt_and_other_bad_input(model: SparseModel) -> None:
    assert model.context == 2048
    with pytest.raises(ProSparseError, match="context: expected at most 2048 tokens, got 2040 in the prompt and 9 new"):
        model.stream([[5] * 2040], max_new_tokens=9)
    with pytest.raises(ProSparseError, match="got 2048 in the prompt and 1 new") as error:
        model.stream([[5] * 2048], max_new_tokens=None)
    assert error.value.hint == "shorten the prompt"
    assert len(list(model.stream([[5] * 2044], max_new_tokens=None))) == 4
    for call in (lambda: model.stream([[5], []]), lambda: model.stream([]), lambda: model.generate("")):
        with pytest.raises(ProSparseError, match="prompt: expected"):
            call()
    with pytest.raises(ProSparseError, match="stop: expected non-empty strings"):
        model.generate("a", stop=["x", ""])
    with pytest.raises(ProSparseError, match="max_new_tokens: expected at least 1, got 0"):
        model.stream([[5]], max_new_tokens=0)
    decoder = model.decoder(1, 4)
    ids = np.full((1, 4), 5)
    with pytest.raises(ProSparseError, match="context: expected at most 4 tokens, got 5"):
        decoder.step(decoder.prefill(ids, np.ones_like(ids)).argmax(-1))
    with pytest.raises(ProSparseError, match="prompt: expected at most 4 tokens, got 5"):
        decoder.prefill(np.full((1, 5), 5), np.ones((1, 5), np.int64))


def test_without_a_manifest_or_a_context_length(demo_artifact: Path, model: SparseModel, tmp_path: Path) -> None:
    for path in demo_artifact.parent.iterdir():
        if path.is_file() and path.name not in ("prosparse.json", "config.json"):
            shutil.copyfile(path, tmp_path / path.name)
    other = replace(load(tmp_path / demo_artifact.name, threads=1), stop=frozenset())
    assert (other.in_place, other.context) == (False, None)
    np.testing.assert_array_equal(streamed(other, prompts(11, 5), NEW), streamed(model, prompts(11, 5), NEW))
    with pytest.raises(ProSparseError, match=r"max_new_tokens: .* has no max_position_embeddings"):
        other.stream([[5]], max_new_tokens=None)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}))
    assert load(tmp_path / demo_artifact.name, threads=1).context == 77
