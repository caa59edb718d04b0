"""Initializers for the operators: their layout, names and types, each matrix once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import graph_of

from graph_passes.formats import FORMATS, Format, is_quantized
from graph_passes.weights.output_powers import output_powers
from graph_passes.weights.quantization import dequantize, quantize, rounded
from graph_passes.weights.store_weight import WeightStore
from graph_passes.weights.weight_source import Weight

D_FF, D_MODEL = 64, 32
MATRIX = np.random.default_rng(0).standard_normal((D_FF, D_MODEL)).astype(np.float32)


def graph() -> ir.Graph:
    constants = {
        "w": MATRIX,
        "b": np.ones(D_FF, np.float32),
        "b16": np.full((1, D_FF), 0.5, np.float16),
    }
    return graph_of("y = Identity (x)", "float[n] x", "float[n] y", **constants).graph


def source(graph: ir.Graph) -> Weight:
    value = graph.initializers["w"]
    assert value.const_value is not None
    return Weight(value, (D_FF, D_MODEL), ir.DataType.FLOAT, "float", value.const_value.numpy)


def contents(values: list[ir.Value], cols: int, weights: Format) -> np.ndarray:
    arrays = [value.const_value.numpy() for value in values if value.const_value is not None]
    return dequantize(arrays[0], arrays[1], cols, weights) if len(arrays) == 2 else arrays[0].astype(np.float32)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("in_major", [False, True])
@pytest.mark.parametrize("is_down", [False, True])
def test_layout(weights: Format, in_major: bool, is_down: bool) -> None:
    g = graph()
    stored = WeightStore(g).neuron_major(source(g), "mlp.up", weights, in_major=in_major, is_down=is_down)
    wanted = MATRIX.T if in_major != is_down else MATRIX
    np.testing.assert_array_equal(contents(stored, wanted.shape[1], weights), rounded(wanted, weights))
    for value in stored:
        assert g.initializers[value.name] is value
        assert tuple(value.shape.numpy()) == tuple(value.const_value.shape.numpy())
        assert value.dtype == value.const_value.dtype
    name = "mlp.up.weight" + ("_t" if is_down else "") + ("" if weights == "f32" else f".{weights}")
    names = [name, f"{name}_scale"] if is_quantized(weights) else [name]
    assert [value.name for value in stored] == (["w"] if weights == "f32" and in_major == is_down else names)


def test_a_matrix_is_stored_once_for_each_layout_and_format() -> None:
    g = graph()
    store = WeightStore(g)
    first = store.neuron_major(source(g), "a", "f16", in_major=True)
    assert store.neuron_major(source(g), "b", "f16", in_major=True) is first
    assert store.neuron_major(source(g), "b", "f16", in_major=False, is_down=True) is first
    assert store.neuron_major(source(g), "b", "f16", in_major=False) is not first
    assert store.neuron_major(source(g), "b", "i8", in_major=True) is not first


def test_names_are_not_taken_twice() -> None:
    g = graph()
    first = WeightStore(g).neuron_major(source(g), "a", "f16", in_major=True)
    second = WeightStore(g).neuron_major(source(g), "a", "f16", in_major=True)
    assert (first[0].name, second[0].name) == ("a.weight.f16", "a.weight.f16.1")


@pytest.mark.parametrize("weights", ["i4", "i8"])
def test_4_bit_values_are_kept_unless_transposed(weights: Format) -> None:
    packed, scales = quantize(MATRIX, "i4")
    values = dequantize(packed, scales, D_MODEL, "i4")
    g = graph()
    w = g.initializers["w"]
    nbits = Weight(w, (D_FF, D_MODEL), ir.DataType.FLOAT, "nbits", lambda: values, lambda: (packed, scales))
    kept = WeightStore(g).neuron_major(nbits, "a", weights, in_major=False)
    np.testing.assert_array_equal(contents(kept, D_MODEL, weights), values)
    assert kept[1].const_value is not None
    np.testing.assert_array_equal(kept[1].const_value.numpy(), scales)
    other = WeightStore(g).neuron_major(nbits, "a", weights, in_major=False, is_down=True)
    np.testing.assert_array_equal(contents(other, D_FF, weights), rounded(values.T, weights))


def test_4_bit_values_are_rounded_anew_to_nl4() -> None:
    packed, scales = quantize(MATRIX, "i4")
    values = dequantize(packed, scales, D_MODEL, "i4")
    g = graph()
    nbits = Weight(
        g.initializers["w"], (D_FF, D_MODEL), ir.DataType.FLOAT, "nbits", lambda: values, lambda: (packed, scales)
    )
    stored = WeightStore(g).neuron_major(nbits, "a", "nl4", in_major=False)
    np.testing.assert_array_equal(contents(stored, D_MODEL, "nl4"), rounded(values, "nl4"))


@pytest.mark.parametrize("weights", ["i8", "i4", "nl4"])
@pytest.mark.parametrize("in_major", [False, True])
def test_a_down_proj_is_divided_by_powers_of_its_outputs(weights: Format, in_major: bool) -> None:
    g = graph()
    store = WeightStore(g)
    rows = MATRIX if in_major else MATRIX.T
    powers = store.output_powers(source(g), "down", weights, in_major=in_major)
    assert powers is not None
    assert powers is store.output_powers(source(g), "down", weights, in_major=in_major)
    assert powers.value.const_value is not None
    own = powers.value.const_value.numpy()
    np.testing.assert_array_equal(own, output_powers(rows))
    assert (powers.value.name, own.dtype, own.shape) == (f"down.weight_t.{weights}_power", np.float32, (rows.shape[1],))
    assert tuple(powers.value.shape.numpy()) == own.shape
    stored = store.neuron_major(source(g), "down", weights, in_major=in_major, is_down=True, powers=powers)
    np.testing.assert_array_equal(contents(stored, rows.shape[1], weights), rounded(rows / own, weights))
    if in_major:
        return
    plain = store.bias(g.initializers["b"], D_FF)
    over = store.bias(g.initializers["b"], D_FF, powers)
    assert plain is g.initializers["b"]
    assert (over.name, over.const_value is not None) == ("b.over_power", True)
    np.testing.assert_array_equal(over.const_value.numpy(), 1 / own)  # type: ignore[union-attr]


def test_powers_that_a_matrix_was_rounded_with_are_stored() -> None:
    g = graph()
    chosen = np.full(D_MODEL, 2, np.float32)
    powers = WeightStore(g).output_powers(source(g), "down", "i4", in_major=True, chosen=chosen)
    assert powers is not None
    np.testing.assert_array_equal(powers.read(), chosen)


def test_float_formats_have_no_powers() -> None:
    g = graph()
    for weights in FORMATS:
        found = WeightStore(g).output_powers(source(g), "down", weights, in_major=True)
        assert (found is None) == (not is_quantized(weights))


def test_biases_are_float32_vectors() -> None:
    g = graph()
    store = WeightStore(g)
    assert store.bias(g.initializers["b"], D_FF) is g.initializers["b"]
    half = store.bias(g.initializers["b16"], D_FF)
    assert store.bias(g.initializers["b16"], D_FF) is half
    assert (half.name, half.dtype, tuple(half.shape.numpy())) == ("b16.f32", ir.DataType.FLOAT, (D_FF,))
    assert half.const_value is not None
    np.testing.assert_array_equal(half.const_value.numpy(), np.full(D_FF, 0.5))
    zeros = store.bias(None, D_FF)
    assert store.bias(None, D_FF) is zeros is not store.bias(None, D_MODEL)
    assert zeros.const_value is not None
    np.testing.assert_array_equal(zeros.const_value.numpy(), np.zeros(D_FF))
