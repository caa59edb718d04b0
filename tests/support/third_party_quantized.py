"""FFNs as quantizers write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from support.onnx_text import D_FF, D_MODEL, MS, UNGATED, Arrays, model, weights

QDQ = """w1 = DequantizeLinear <axis = 1> (q_w_up, s_w_up)
w2 = DequantizeLinear <axis = 1> (q_w_down, s_w_down)
z = MatMul (x, w1)
h = Relu (z)
y = MatMul (h, w2)"""


def pack_nibbles(matrix: NDArray[np.generic]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """MatMulNBits' symmetric 4-bit storage of ``[K, N]``: ``[N, K / 32, 16]`` and scales ``[N, K / 32]``."""
    rows = matrix.T.astype(np.float32).reshape(matrix.shape[1], -1, 32)
    peak = np.take_along_axis(rows, np.abs(rows).argmax(-1, keepdims=True), -1)
    scales = peak / -8
    values = (np.clip(np.rint(rows / scales), -8, 7) + 8).astype(np.uint8)
    return values[..., ::2] | values[..., 1::2] << 4, scales[..., 0].astype(np.float32)


def nbits_arrays(zero_point: int | None = None) -> Arrays:
    arrays: Arrays = {}
    for name in ("gate", "up", "down"):
        packed, scales = pack_nibbles(weights()[f"w_{name}"])
        arrays |= {f"q_{name}": packed, f"s_{name}": scales}
        if zero_point is not None:
            arrays[f"p_{name}"] = np.full((packed.shape[0], -(-packed.shape[1] // 2)), zero_point * 17, np.uint8)
    return arrays


def nbits(zero_point: str = "") -> str:
    def matmul(x: str, name: str, y: str, k: int, n: int) -> str:
        inputs = f"{x}, q_{name}, s_{name}" + (f", p_{name}" if zero_point else "")
        return f"{y} = com.microsoft.MatMulNBits <K = {k}, N = {n}, bits = 4, block_size = 32> ({inputs})"

    up = [matmul("x", "gate", "z", D_MODEL, D_FF), matmul("x", "up", "u", D_MODEL, D_FF)]
    return "\n".join([*up, "a = Relu (z)\nh = Mul (a, u)", matmul("h", "down", "y", D_FF, D_MODEL)])


def qdq_arrays() -> Arrays:
    arrays: Arrays = {}
    for name in ("w_up", "w_down"):
        matrix = weights()[name]
        scale = (np.abs(matrix).max(0) / 127).astype(np.float32)
        arrays |= {f"q_{name}": np.rint(matrix / scale).astype(np.int8), f"s_{name}": scale}
    return arrays


def quantized_by_onnxruntime(kind: str) -> ModelProto:
    """An FFN quantized by onnxruntime: "dynamic", or static, such as "QDQ QInt8"."""
    from onnxruntime import quantization

    class Inputs(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(1)
            self._rest = [{"x": rng.standard_normal((2, 4, D_MODEL)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return self._rest.pop() if self._rest else None

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model(UNGATED.format("Relu (z)"), opset=21, ir_version=10), source)
        if kind == "dynamic":
            quantization.quantize_dynamic(source, target)
        else:
            form, _, integer = kind.partition(" ")
            options = {
                "quant_format": quantization.QuantFormat[form],
                "activation_type": quantization.QuantType[integer],
            }
            quantization.quantize_static(source, target, Inputs(), **options)
        return onnx.load(target)


def rounded() -> Arrays:
    """int8 matrices with one scale, for integer MatMuls."""
    arrays: Arrays = {"s_one": np.float32(0.01), "i_zero": np.int8(0), "u_zero": np.uint8(0)}
    for name in ("up", "down"):
        arrays[f"i_{name}"] = np.rint(weights()[f"w_{name}"] * 100).astype(np.int8)
    return {**arrays, "b_up": weights()["b_up"]}


# name: (builder, FFNs rewritten, a part of the reason for each other FFN)
QUANTIZED: dict[str, tuple[Callable[[], ModelProto], int, list[str]]] = {
    "QDQ weights": (lambda: model(QDQ, qdq_arrays()), 0, ["integers (DequantizeLinear)"]),
    "QDQ activations": (
        lambda: model(
            "z = MatMul (x, w_up)\nr = Relu (z)\nq = QuantizeLinear (r, step)\n"
            "h = DequantizeLinear (q, step)\ny = MatMul (h, w_down)",
            {**weights(), "step": np.float32(0.05)},
        ),
        0,
        ["its activations are quantized"],
    ),
    "model builder, int4": (lambda: model(nbits(), nbits_arrays(), imports=MS), 0, ["4-bit (MatMulNBits)"]),
    "model builder, int4 with zero points of 8": (
        lambda: model(nbits("p"), nbits_arrays(8), imports=MS),
        0,
        ["4-bit (MatMulNBits)"],
    ),
    "model builder, asymmetric int4": (
        lambda: model(nbits("p"), nbits_arrays(7), imports=MS),
        0,
        ["MatMulNBits has zero points"],
    ),
    "quantize_dynamic": (
        lambda: quantized_by_onnxruntime("dynamic"),
        0,
        ["its activations are quantized (MatMulInteger"],
    ),
    "quantize_static, QDQ": (
        lambda: quantized_by_onnxruntime("QDQ QInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QuantizeLinear"],
    ),
    "quantize_static, QDQ of unsigned integers": (
        lambda: quantized_by_onnxruntime("QDQ QUInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QuantizeLinear"],
    ),
    "quantize_static, QOperator": (
        lambda: quantized_by_onnxruntime("QOperator QUInt8"),
        0,
        ["its activations are quantized: the ReLU is folded into the zero point of QLinearMatMul"],
    ),
    "MatMulIntegerToFloat": (
        lambda: model(
            "xq, xs, xz = DynamicQuantizeLinear (x)\n"
            "z = com.microsoft.MatMulIntegerToFloat (xq, i_up, xs, s_one, xz, i_zero, b_up)\nr = Relu (z)\n"
            "hq, hs, hz = DynamicQuantizeLinear (r)\n"
            "y = com.microsoft.MatMulIntegerToFloat (hq, i_down, hs, s_one, hz, i_zero)",
            rounded(),
            imports=MS,
        ),
        0,
        ["its activations are quantized (MatMulIntegerToFloat"],
    ),
    "DynamicQuantizeMatMul": (
        lambda: model(
            "z = com.microsoft.DynamicQuantizeMatMul (x, i_up, s_one, i_zero, b_up)\nr = Relu (z)\n"
            "y = com.microsoft.DynamicQuantizeMatMul (r, i_down, s_one, i_zero)",
            rounded(),
            imports=MS,
        ),
        0,
        ["its activations are quantized (DynamicQuantizeMatMul"],
    ),
}
