"""What PyTorch computes for a tiny model, and how far an artifact is from it."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prosparse_export import ProSparseError
from prosparse_export.runtime.cache import Cache
from prosparse_export.runtime.encoder_decoder import EncoderDecoder
from prosparse_export.runtime.model import SparseModel
from support.model_sizes import D_FF, D_MODEL, VOCAB

PADS = (0, 5, 9)
PROMPT, NEW = 12, 16  # 28 tokens: well beyond the sliding windows of 8


def rounding_bound(size: float) -> float:
    """Bound on the difference of logits of ``size``: half an ulp for each addition on the longest way through.

    Two layers at most. A layer: q, k or v and o (d_model each), the head's scores and weighted values (d_model and
    the tokens at most),
    up and down (d_model and d_ff), two norms and two residual additions (3 d_model at most). Cross-attention, of an
    encoder-decoder: as much as a layer's attention and a norm. Then lm_head's d_model. Both sides round, hence twice.
    """
    additions = 2 * (8 * D_MODEL + D_FF + PROMPT + NEW) + (5 * D_MODEL + PROMPT) + 2 * D_MODEL
    return 2 * additions * 2.0**-24 * max(1.0, size)


def watch_sparsity(model: torch.nn.Module, down_projs: list[str]) -> list[float]:
    """Return a list that receives the activation sparsity of each FFN as the model runs."""
    sparsities: list[float] = []
    for path in down_projs:
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, x: sparsities.append(float((x[0] == 0).double().mean()))
        )
    return sparsities


class Reference:
    """PyTorch float32 on a left-padded batch, its greedy continuation, and each token of one row by itself."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        sparsities = watch_sparsity(model, down_projs)
        positions = np.maximum(self.mask.cumsum(-1) - 1, 0)
        tensors = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions}
        self.padded = model(**{k: torch.from_numpy(v) for k, v in tensors.items()}).logits.numpy()
        self.continuation = self._greedy(model)
        self.row = np.concatenate([self.ids[0], self.continuation[0][0]])[None, :-1]
        self.decoded = model(input_ids=torch.from_numpy(self.row)).logits.numpy()
        self.sparsity = float(np.mean(sparsities)) if sparsities else 0.0

    def _inputs(self) -> None:
        self.ids = np.random.default_rng(0).integers(3, VOCAB, (len(PADS), PROMPT))
        self.mask = np.ones_like(self.ids)
        for row, pad in enumerate(PADS):
            self.mask[row, :pad], self.ids[row, :pad] = 0, 0

    def _greedy(self, model: torch.nn.Module) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens ``[row, new]`` and the gaps between the two best logits, without a cache."""
        ids, mask, tokens, gaps = self.ids, self.mask, [], []
        for _ in range(NEW):
            positions = np.maximum(mask.cumsum(-1) - 1, 0)
            tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            best = model(**{k: torch.from_numpy(v) for k, v in tensors.items()}, use_cache=False).logits[:, -1].topk(2)
            tokens.append(best.indices[:, 0].numpy())
            gaps.append((best.values[:, 0] - best.values[:, 1]).numpy())
            ids = np.concatenate([ids, tokens[-1][:, None]], 1)
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
        return np.stack(tokens, 1), np.stack(gaps, 1)

    def differences(self, sparse: SparseModel) -> list[float]:
        """Largest difference of a logit: left-padded prefill, then one row's tokens one by one, with the cache."""
        logits, _ = sparse.forward(self.ids, self.mask)
        found = [float(np.abs(logits - self.padded)[self.mask == 1].max())]
        cache: Cache | None = None
        for i in range(self.row.shape[1]):
            step, cache = sparse.forward(self.row[:, i : i + 1], np.ones((1, i + 1), np.int64), cache)
            found.append(float(np.abs(step[:, 0] - self.decoded[:, i]).max()))
        return found

    def greedy_differs(self, sparse: SparseModel, bound: float) -> int:
        """Rows whose greedy tokens differ, up to a tie within twice the bound."""
        endless = replace(sparse, stop=frozenset())
        prompts = [row[pad:].tolist() for row, pad in zip(self.ids, PADS, strict=True)]
        actual = np.stack(list(endless.stream(prompts, max_new_tokens=NEW)), 1)
        return self._wrong_rows(actual, bound)

    def _wrong_rows(self, actual: NDArray[np.int64], bound: float) -> int:
        tokens, gaps = self.continuation
        wrong = 0
        for row in range(len(PADS)):
            different = np.flatnonzero(actual[row] != tokens[row])
            wrong += bool(len(different)) and not gaps[row, different[0]] <= 2 * bound
        return wrong


class Encoded(Reference):
    """An encoder's hidden states on the same batch; there is nothing to generate."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        sparsities = watch_sparsity(model, down_projs)
        tensors = {"input_ids": torch.from_numpy(self.ids), "attention_mask": torch.from_numpy(self.mask)}
        self.padded = self.decoded = model(**tensors).last_hidden_state.numpy()
        self.sparsity = float(np.mean(sparsities))

    def differences(self, sparse: SparseModel) -> list[float]:
        states, _ = sparse.forward(self.ids, self.mask)
        return [float(np.abs(states - self.padded)[self.mask == 1].max())]

    def greedy_differs(self, sparse: SparseModel, bound: float) -> int:
        with pytest.raises(ProSparseError, match="expected a decoder with a KV cache"):
            next(sparse.stream([[5]]))
        return 0


class Translated(Reference):
    """PyTorch float32 of an encoder-decoder: a left-padded batch of sources, and the output for each source alone."""

    @torch.no_grad()
    def __init__(self, model: torch.nn.Module, down_projs: list[str]) -> None:
        self._inputs()
        self.ids[self.mask == 0] = model.config.pad_token_id
        sparsities = watch_sparsity(model, down_projs)
        source = {"input_ids": torch.from_numpy(self.ids), "attention_mask": torch.from_numpy(self.mask)}
        states = model.get_encoder()(**source)
        self.padded = states.last_hidden_state.numpy()
        start = model.config.decoder_start_token_id
        greedy = [self._translation(model, row[pad:], start) for row, pad in zip(self.ids, PADS, strict=True)]
        self.continuation = np.stack([tokens for tokens, _ in greedy]), np.stack([gaps for _, gaps in greedy])
        begin = np.full((len(PADS), 1), start)
        self.row = np.concatenate([begin, self.continuation[0][:, :-1]], 1)
        out = model(
            attention_mask=source["attention_mask"],
            encoder_outputs=states,
            decoder_input_ids=torch.from_numpy(self.row),
        )
        self.decoded = out.logits.numpy()
        self.sparsity = float(np.mean(sparsities))

    @staticmethod
    def _translation(model: torch.nn.Module, row: NDArray[np.int64], start: int) -> tuple[Any, Any]:
        tokens, gaps = [start], []
        for _ in range(NEW):
            feeds = {"input_ids": torch.from_numpy(row[None].copy()), "decoder_input_ids": torch.tensor([tokens])}
            best = model(**feeds, use_cache=False).logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
        return np.array(tokens[1:]), np.array(gaps)

    def differences(self, sparse: EncoderDecoder) -> list[float]:  # type: ignore[override]
        """Largest difference: the encoder's states, all tokens in one go, one by one, and some in one go after one."""
        source = sparse.encode(self.ids, self.mask)
        found = [float(np.abs(source.states - self.padded)[self.mask == 1].max())]
        for cuts in ([NEW], [1] * NEW, [1, NEW - 1]):
            cache: Cache | None = None
            begin = 0
            for length in cuts:
                part = slice(begin, begin + length)
                logits, cache = sparse.forward(self.row[:, part], source, cache)
                found.append(float(np.abs(logits - self.decoded[:, part]).max()))
                begin += length
        return found

    def greedy_differs(self, sparse: EncoderDecoder, bound: float) -> int:  # type: ignore[override]
        """Rows whose greedy tokens differ, up to a tie; the artifact pads sources on the right."""
        endless = dataclasses.replace(sparse, stop=frozenset())
        prompts = [row[pad:].tolist() for row, pad in zip(self.ids, PADS, strict=True)]
        actual = np.stack(list(endless.stream(prompts, max_new_tokens=NEW)), 1)
        return self._wrong_rows(actual, bound)
