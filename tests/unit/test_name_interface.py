"""Names of a causal LM's inputs, outputs and dimensions."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from support.graphs import graph_of

from graph_passes import NameInterfacePass


def causal_lm(past: str = "input.cache", present: str = "output.cache") -> ir.Model:
    model = graph_of(
        "y = Identity (ids)\nk1 = Identity (k)\nv1 = Identity (v)",
        "int64[s44, s70] ids, int64[s44, s9] mask, float[s44, 2, s5, 16] k, float[s44, 2, s5, 16] v",
        "int64[s44, s70] y, float[s44, 2, s5, 16] k1, float[s44, 2, s5, 16] v1",
    )
    names = ["input_ids", "attention_mask"]
    names += [f"{past}.layers.3.{part}" for part in ("keys", "values")]
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name
    for value, part in zip(model.graph.outputs[1:], ("keys", "values"), strict=True):
        value.name = f"{present}.layers.3.{part}"
    return model


def dims(value: ir.Value) -> list[str]:
    return [str(dim) for dim in value.shape or ()]


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("input.cache", "output.cache"),  # transformers 5.24
        ("input.past_key_values", "output.past_key_values"),  # before
        ("past_key_values", "cache"),  # 5.24, called by the old name
    ],
)
def test_renames_cache_and_dimensions(past: str, present: str) -> None:
    model = causal_lm(past, present)
    assert NameInterfacePass()(model).modified
    ids, mask, key, value = model.graph.inputs
    assert [v.name for v in (key, value)] == ["past_key_values.3.key", "past_key_values.3.value"]
    assert [v.name for v in model.graph.outputs[1:]] == ["present.3.key", "present.3.value"]
    assert dims(ids) == ["batch_size", "sequence_length"]
    assert dims(mask) == ["batch_size", "past_sequence_length + sequence_length"]
    assert dims(key) == ["batch_size", "2", "past_sequence_length", "16"]
    assert dims(model.graph.outputs[0]) == ["batch_size", "sequence_length"]


def test_without_a_cache_the_mask_is_as_long_as_the_text() -> None:
    model = graph_of("y = Identity (input_ids)", "int64[a, b] input_ids, int64[a, c] attention_mask", "int64[a, b] y")
    assert NameInterfacePass()(model).modified
    assert dims(model.graph.inputs[1]) == ["batch_size", "sequence_length"]


def test_leaves_named_graphs_and_other_inputs_alone() -> None:
    model = causal_lm()
    NameInterfacePass()(model)
    assert not NameInterfacePass()(model).modified
    other = graph_of("y = Identity (pixels)", "float[n, 3, 8, 8] pixels", "float[n, 3, 8, 8] y")
    assert not NameInterfacePass()(other).modified
    assert dims(other.graph.inputs[0]) == ["n", "3", "8", "8"]
