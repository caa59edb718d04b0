"""Decoding with a toy model: the next token is (sum of the text + 2 * its length - 1) modulo the vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime import cache, decode_loop
from prosparse_export.runtime.decode_loop import Decoder, decode_tokens
from prosparse_export.runtime.sampling import GREEDY, Sampler

VOCABULARY = 11
PATH = Path("m.onnx")
# The cache holds the token ids. Length is counted by the mask, and once more by the last position.
GROWING = """
u = Unsqueeze (f, a13)
present = Concat <axis = 2> (past, u)
total = ReduceSum <keepdims = 0> (present, a123)
"""
# Each token is written to the slot of its position; slots behind the last position are undefined.
IN_PLACE = """
shape = Shape (past)
capacity = Gather (shape, two)
slots = Range (zero, capacity, one)
pos2 = Unsqueeze (position_ids, a2)
is_slot = Equal (pos2, slots)
hot = Cast <to = 1> (is_slot)
turned = Transpose <perm = [0, 2, 1]> (hot)
f2 = Unsqueeze (f, a2)
new = MatMul (turned, f2)
new4 = Unsqueeze (new, a1)
hits = ReduceMax <keepdims = 1> (turned, a2)
hits4 = Unsqueeze (hits, a1)
written = Cast <to = 9> (hits4)
present = Where (written, new4, past)
last2 = Unsqueeze (last, a1)
used = LessOrEqual (slots, last2)
used4 = Unsqueeze (used, a13)
nothing = Sub (fzero, fzero)
valid = Where (used4, present, nothing)
total = ReduceSum <keepdims = 0> (valid, a123)
"""
TEXT = """<ir_version: 9, opset_import: ["" : 20]> g (int64[b, s] input_ids, int64[b, t] attention_mask,
int64[b, s] position_ids, float[b, 1, p, 1] past) => (float[b, one_, v] logits, float[b, 1, q, 1] present)
<int64[1] a1 = {{1}}, int64[1] a2 = {{2}}, int64[2] a13 = {{1, 3}}, int64[3] a123 = {{1, 2, 3}}, int64 zero = {{0}},
int64 one = {{1}}, int64 two = {{2}}, float fzero = {{0}}, int64 v = {{11}}, float[2] off_on = {{0, 1}}> {{
f = Cast <to = 1> (input_ids)
last = ReduceMax <keepdims = 0> (position_ids, a1)
{cache}
sum = Cast <to = 7> (total)
length = ReduceSum <keepdims = 0> (attention_mask, a1)
c = Add (sum, length)
d = Add (c, last)
e = Mod (d, v)
e2 = Unsqueeze (e, a1)
logits = OneHot (e2, v, off_on)
}}"""


def session(*, in_place: bool, rename: bool = True) -> onnxruntime.InferenceSession:
    proto = onnx.parser.parse_model(TEXT.format(cache=IN_PLACE if in_place else GROWING))
    if rename:  # ONNX text has no names with dots
        for values, old, new in (
            (proto.graph.input, "past", "past_key_values.0.key"),
            (proto.graph.output, "present", "present.0.key"),
        ):
            next(value for value in values if value.name == old).name = new
            for node in proto.graph.node:
                for names in (node.input, node.output):
                    names[:] = [new if name == old else name for name in names]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # constants of the other cache are unused
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def decoder(*, in_place: bool, batch: int = 1, capacity: int = 32) -> Decoder:
    return Decoder(session(in_place=in_place), PATH, batch=batch, capacity=capacity, in_place=in_place)


def continued(prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append((sum(text) + 2 * len(text) - 1) % VOCABULARY)
    return text[len(prompt) :]


def decode(prompts: list[list[int]], count: int, stop: tuple[int, ...] = (), *, in_place: bool) -> list[list[int]]:
    new = decoder(in_place=in_place, batch=len(prompts))
    steps = list(decode_tokens(new, Sampler(GREEDY, len(prompts)), prompts, count, stop))
    return np.stack(steps, -1).tolist()


@pytest.mark.parametrize("in_place", [False, True])
def test_tokens(in_place: bool) -> None:
    assert decode([[3, 1, 4, 1, 5]], 6, in_place=in_place) == [continued([3, 1, 4, 1, 5], 6)]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_long_prompt_runs_in_chunks(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_loop, "PREFILL_TOKENS", 3)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    assert decode([prompt], 4, in_place=in_place) == [continued(prompt, 4)]


def test_long_prompts_of_a_batch_run_in_chunks_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_loop, "PREFILL_TOKENS", 3)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2], [7, 1, 8, 2]]
    assert decode(prompts, 5, in_place=True) == [continued(prompt, 5) for prompt in prompts]


def test_the_cache_grows_while_texts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_STEP", 4)
    prompts = [[3, 1, 4, 1, 5], [2]]
    assert decode(prompts, 20, in_place=True) == [continued(prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("in_place", [False, True])
def test_prompts_of_different_lengths(in_place: bool) -> None:
    prompts = [[3, 1, 4, 1, 5], [2], [7, 1, 8]]
    assert decode(prompts, 5, in_place=in_place) == [continued(prompt, 5) for prompt in prompts]


def test_a_text_ends_at_a_stop_token() -> None:
    prompts = [[3, 1, 4], [2]]
    first, second = (continued(prompt, 6) for prompt in prompts)
    assert first.index(first[1]) == 1
    assert first[1] not in second
    assert decode(prompts, 6, (first[1],), in_place=True) == [[*first[:2], *[first[1]] * 4], second]
    assert decode(prompts[:1], 6, (first[1],), in_place=True) == [first[:2]]


@pytest.mark.parametrize("in_place", [False, True])
def test_the_capacity_is_a_limit(in_place: bool) -> None:
    full = decoder(in_place=in_place, capacity=3)
    with pytest.raises(ProSparseError, match="prompt: expected at most 3 tokens, got 4"):
        full.prefill(np.ones((1, 4), np.int64), np.ones((1, 4), np.int64))
    full.prefill(np.ones((1, 2), np.int64), np.ones((1, 2), np.int64))
    full.step(np.asarray([1]))
    with pytest.raises(ProSparseError, match="context: expected at most 3 tokens, got 4"):
        full.step(np.asarray([1]))


def test_other_models_are_rejected() -> None:
    with pytest.raises(ProSparseError, match=r"m\.onnx: expected a decoder with a KV cache, got no input past_key"):
        Decoder(session(in_place=False, rename=False), PATH, batch=1, capacity=4, in_place=False)


def test_errors_of_onnxruntime_name_the_file() -> None:
    one = decoder(in_place=False)
    with pytest.raises(ProSparseError, match=r"model: m\.onnx: ") as caught:
        one.prefill(np.ones((2, 3), np.int64), np.ones((3, 3), np.int64))  # rows differ
    assert "\n" not in str(caught.value)
    assert caught.value.hint
