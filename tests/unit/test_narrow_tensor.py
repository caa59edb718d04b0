"""Float32 tensors that are read in the type of their file."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graph_passes.weights.narrow_tensor import NarrowTensor, narrow_reader

VALUES = np.array([[0.5, -3.0], [6e-8, 65504.0]])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_values_are_float32_and_the_reader_keeps_the_type(dtype: type) -> None:
    narrow = VALUES.astype(dtype)
    tensor = NarrowTensor(lambda: narrow, (2, 2), "w")
    assert (tensor.name, tensor.dtype, tuple(tensor.shape.numpy())) == ("w", ir.DataType.FLOAT, (2, 2))
    np.testing.assert_array_equal(tensor.numpy(), narrow.astype(np.float32), strict=True)
    assert tensor.tobytes() == narrow.astype(np.float32).tobytes()
    assert narrow_reader(tensor)() is narrow


def test_other_tensors_are_read_as_they_are() -> None:
    tensor = ir.tensor(VALUES.astype(np.float32), name="w")
    np.testing.assert_array_equal(narrow_reader(tensor)(), tensor.numpy(), strict=True)
