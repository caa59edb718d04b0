"""Dense FFNs in OpenVINO with 8-bit or 4-bit weights, as its own tools compress them."""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from engines.ffn_graphs import Run, Shape


def openvino_dense(shape: Shape, width: int, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """Return a call of all layers: int8 with a scale per row, int4 with one per 128 columns (or 64)."""
    rng = np.random.default_rng(0)
    count = shape.layers(float(width))

    def linear(a: ov.Node, d_in: int, d_out: int) -> ov.Node:
        if width == 8:
            stored = ops.constant(rng.integers(-127, 128, (d_out, d_in), np.int8))
            weight = ops.multiply(
                ops.convert(stored, "f32"), ops.constant(np.full((d_out, 1), d_in**-0.5 / 73, np.float32))
            )
        else:
            group = 128 if d_in % 128 == 0 else 64
            packed = rng.integers(0, 256, d_out * d_in // 2, np.uint8)
            stored = ops.constant(ov.Tensor(packed, ov.Shape([d_out, d_in // group, group]), ov.Type.i4))
            scale = ops.constant(np.full((d_out, d_in // group, 1), d_in**-0.5 / 4.6, np.float32))
            grouped = ops.multiply(ops.convert(stored, "f32"), scale)
            weight = ops.reshape(grouped, ops.constant(np.array([d_out, d_in])), False)
        return ops.matmul(a, weight, False, True)

    source = ops.parameter([-1, shape.d_model], np.float32, name="x")
    total = None
    for _ in range(count):
        hidden = ops.relu(linear(source, shape.d_model, shape.d_ff))
        if shape.gated:
            hidden = ops.multiply(hidden, linear(source, shape.d_model, shape.d_ff))
        y = linear(hidden, shape.d_ff, shape.d_model)
        total = y if total is None else ops.add(total, y)
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(ov.Model([total], [source]), "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    return request.infer, count
