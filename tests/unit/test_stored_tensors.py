"""Tensors that store a matrix: types, shapes and names before they are computed, and their contents after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.formats import FORMATS, Format, is_quantized
from graph_passes.weights.group_scales import WeightRangeError
from graph_passes.weights.quantization import dequantize, quantize, rounded
from graph_passes.weights.stored_tensors import repacked_tensors, stored_tensors

MATRIX = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
SHAPES = {"f32": (3, 40), "f16": (3, 40), "bf16": (3, 40), "i8": (3, 40), "i4": (3, 32), "nl4": (3, 32)}
TYPES = {"f32": "FLOAT", "f16": "FLOAT16", "bf16": "BFLOAT16", "i8": "INT8", "i4": "UINT8", "nl4": "UINT8"}


def unread() -> np.ndarray:
    raise AssertionError("read before it was needed")


@pytest.mark.parametrize("weights", FORMATS)
def test_types_and_shapes_are_known_without_reading(weights: Format) -> None:
    first, *scales = stored_tensors(unread, (3, 40), weights, "w")
    assert (first.name, first.dtype.name, tuple(first.shape.numpy())) == ("w", TYPES[weights], SHAPES[weights])
    found = [(scale.name, scale.dtype, tuple(scale.shape.numpy())) for scale in scales]
    assert found == ([("w_scale", ir.DataType.FLOAT16, (3, 2))] if is_quantized(weights) else [])


@pytest.mark.parametrize("weights", FORMATS)
def test_contents(weights: Format) -> None:
    arrays = [tensor.numpy() for tensor in stored_tensors(lambda: MATRIX, (3, 40), weights, "w")]
    assert tuple(arrays[0].shape) == SHAPES[weights]
    values = dequantize(arrays[0], arrays[1], 40, weights) if len(arrays) == 2 else arrays[0].astype(np.float32)
    np.testing.assert_array_equal(values, rounded(MATRIX, weights))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0)])
def test_scales_are_the_same_in_any_order(order: tuple[int, ...]) -> None:
    reads = []

    def read() -> np.ndarray:
        reads.append(1)
        return MATRIX

    tensors = stored_tensors(read, (3, 40), "i4", "w")
    expected = quantize(MATRIX, "i4")
    for index in order:
        np.testing.assert_array_equal(tensors[index].numpy(), expected[index])
    assert len(reads) == (1 if order == (0, 1) else len(order))  # scales after integers are not computed again


@pytest.mark.parametrize(("weights", "bad"), [("f16", 1e6), ("i8", 1e8), ("i4", np.nan), ("nl4", np.nan)])
def test_errors_name_the_matrix(weights: Format, bad: float) -> None:
    matrix = MATRIX.copy()
    matrix[1, 1] = bad
    for tensor in stored_tensors(lambda: matrix, (3, 40), weights, "layer.weight"):
        with pytest.raises(
            WeightRangeError,
            match=r"weights: layer\.weight: (weights reach |n?l?i?4: expected finite weights, got NaN)",
        ):
            tensor.numpy()


def test_a_matrix_that_is_infinite_already_is_stored() -> None:
    matrix = np.full((1, 2), np.inf, np.float32)
    (tensor,) = stored_tensors(lambda: matrix, (1, 2), "f16", "w")
    assert np.isinf(tensor.numpy()).all()


@pytest.mark.parametrize("weights", ["i4", "i8"])
def test_4_bit_values_are_repacked_without_rounding(weights: Format) -> None:
    packed, scales = quantize(np.tile(MATRIX, 8)[:, :64], "i4")
    tensors = repacked_tensors(lambda: (packed, scales.astype(np.float32)), (3, 64), weights, "w")
    integers, stored = (tensor.numpy() for tensor in tensors)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(dequantize(integers, stored, 64, weights), dequantize(packed, scales, 64, "i4"))
    assert integers.dtype == (np.uint8 if weights == "i4" else np.int8)
