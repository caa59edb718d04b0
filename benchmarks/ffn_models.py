"""Feed-forward blocks with random weights for every engine of the benchmark; more layers than any cache holds.

Each engine computes ``sum over l of ffn_l(x)`` in one call: the cost of a call is shared by the layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from graph_passes import custom_ops, dequantize, format_of
from prosparse_export import register
from prosparse_export.analysis.roofline import Ffn, bits_per_weight

Run = Callable[[], object]
Array = NDArray[np.generic]


def _last_level_cache() -> int:
    """Return the size of the L3 cache in bytes as Linux gives it; 0 where it does not."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    text = path.read_text(encoding="ascii").strip() if path.is_file() else "0K"
    return int(text.removesuffix("K")) << 10


WORKING_SET = max(192 << 20, _last_level_cache() * 3 // 2)  # bytes of weights that a round reads at least
_TYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i8": TensorProto.INT8,
    "i4": TensorProto.UINT8,
}


@dataclass(frozen=True)
class Shape:
    """A block's sizes."""

    name: str
    d_model: int
    d_ff: int
    gated: bool = True

    @property
    def matrices(self) -> int:
        """Matrices of a block."""
        return 3 if self.gated else 2

    def cost(self, weights: custom_ops.FfnFormat, sparsity: float = 0.0) -> Ffn:
        """Return what a block in one of our formats reads."""
        return Ffn(self.d_model, self.d_ff, self.gated, weights, sparsity)

    def layers(self, bits: float, working_set: int = WORKING_SET) -> int:
        """Layers whose weights exceed ``working_set`` bytes, by default every cache."""
        return max(1, -(-working_set * 8 // int(self.matrices * self.d_model * self.d_ff * bits)))


def random_weights(weights: str, rows: int, cols: int, rng: np.random.Generator) -> tuple[Array, Array | None]:
    """Return stored weights and scales (None for float formats) of about unit variance per row of ``cols``."""
    size = cols**-0.5
    if weights == "f32":
        return rng.standard_normal((rows, cols), np.float32) * np.float32(size), None
    if weights in ("f16", "bf16"):
        dtype = np.float16 if weights == "f16" else ml_dtypes.bfloat16
        return (rng.standard_normal((rows, cols), np.float32) * np.float32(size)).astype(dtype), None
    blocks = -(-cols // 32)
    if weights == "i8":
        integers = rng.integers(-127, 128, (rows, cols), np.int8)
        return integers, np.full((rows, blocks), size / 73, np.float16)
    return rng.integers(0, 256, (rows, blocks * 16), np.uint8), np.full((rows, blocks), size / 4.6, np.float16)


class Blocks:
    """The layers of one shape in one of our formats, in a folder; the bias of the gate sets the sparsity."""

    def __init__(
        self,
        shape: Shape,
        weights: custom_ops.FfnFormat,
        x: NDArray[np.float32],
        folder: Path,
        *,
        working_set: int = WORKING_SET,
    ) -> None:
        self.shape, self.weights, self.x, self.folder = shape, weights, x, folder
        self.count = max(1, -(-working_set // int(shape.cost(weights).dense_bytes)))
        self.names = ["gate", "up", "down"] if shape.gated else ["up", "down"]
        rng = np.random.default_rng(0)
        self._tensors: list[onnx.TensorProto] = []
        self._z: list[NDArray[np.float32]] = []
        with (folder / f"{shape.name}-{weights}.data").open("wb") as data:
            for layer in range(self.count):
                for name in self.names:
                    own = format_of(weights, is_down=name == "down")
                    stored, scales = random_weights(own, shape.d_ff, shape.d_model, rng)
                    self._add(data, f"w_{name}_{layer}", stored, _TYPES[own])
                    if scales is not None:
                        self._add(data, f"s_{name}_{layer}", scales, TensorProto.FLOAT16)
                    if name == self.names[0]:
                        plain = (
                            dequantize(stored, scales, shape.d_model)
                            if scales is not None
                            else stored.astype(np.float32)
                        )
                        self._z.append(x[:8] @ plain.T)

    def _add(self, data, name: str, array: Array, kind: int) -> None:
        data.seek(-(-data.tell() // 4096) * 4096)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        data.write(array.tobytes())
        self._tensors.append(tensor)

    def session(self, sparsity: float, threads: int, *, dense: bool = False) -> tuple[Run, float]:
        """Return a call of all layers with our operators, and the sparsity that the gates really have."""
        shape, nodes, tensors, measured = self.shape, [], list(self._tensors), []
        op = (custom_ops.sparse_gated_ffn if shape.gated else custom_ops.sparse_ffn)(self.weights)
        zeros = {name: np.zeros(shape.d_model if name == "down" else shape.d_ff, np.float32) for name in self.names}
        for layer in range(self.count):
            z = self._z[layer]
            bias = np.float32(-np.quantile(z, sparsity) if sparsity > 0 else 1 - z.min())
            measured.append(float((z + bias <= 0).mean()))
            inputs = ["x"]
            for name in self.names:
                inputs.append(f"w_{name}_{layer}")
                if custom_ops.is_quantized(self.weights):
                    inputs.append(f"s_{name}_{layer}")
                inputs.append(f"b_{name}_{layer}")
                value = zeros[name] + (bias if name == self.names[0] else np.float32(0))
                tensors.append(onnx.numpy_helper.from_array(value, inputs[-1]))
            attributes = {"activation": "relu", "threshold": 0.0, "domain": custom_ops.DOMAIN}
            nodes.append(helper.make_node(op, inputs, [f"y_{layer}"], **attributes))
        path = self.folder / f"{shape.name}-{self.weights}.onnx"
        path.write_bytes(_summed(nodes, tensors, self.count, shape.d_model).SerializeToString())
        os.environ["PROSPARSE_DENSE"] = "1" if dense else "0"
        try:
            return ort_run(path, self.x, threads, ours=True), float(np.mean(measured))
        finally:
            os.environ.pop("PROSPARSE_DENSE")


def _summed(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], count: int, d_out: int, d_in: int | None = None
) -> onnx.ModelProto:
    total = helper.make_node("Sum", [f"y_{i}" for i in range(count)], ["y"])
    widths = {"x": d_in or d_out, "y": d_out}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]) for name, width in widths.items()]
    graph = helper.make_graph([*nodes, total], "ffn", values[:1], values[1:], tensors)
    imports = [
        helper.make_opsetid("", 20),
        helper.make_opsetid(custom_ops.DOMAIN, 1),
        helper.make_opsetid("com.microsoft", 1),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def ort_run(model: Path | bytes, x: NDArray[np.float32], threads: int, *, ours: bool = False) -> Run:
    """Open a model in onnxruntime with bound input and output and return a call of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads slow the next engine's turn
    if ours:
        register(options)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def ort_dense(shape: Shape, kind: str, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """Dense onnxruntime: ``f32`` by MatMul, ``q8`` and ``q4`` by MatMulNBits with blocks of 32, accuracy_level 4."""
    bits = {"f32": 32.0, "q8": 10.0, "q4": 6.0}[kind]
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    count = shape.layers(bits if kind == "f32" else bits - 1.5)

    def linear(a: str, d_in: int, d_out: int, y: str) -> None:
        if kind == "f32":
            array = rng.standard_normal((d_in, d_out), np.float32) * np.float32(d_in**-0.5)
            tensors.append(onnx.numpy_helper.from_array(array, f"w_{y}"))
            nodes.append(helper.make_node("MatMul", [a, f"w_{y}"], [y]))
            return
        width = int(kind[1])
        tensors.append(
            onnx.numpy_helper.from_array(rng.integers(0, 256, (d_out, d_in // 32, 4 * width), np.uint8), f"w_{y}")
        )
        tensors.append(
            onnx.numpy_helper.from_array(
                np.full(d_out * d_in // 32, d_in**-0.5 / 2 ** (width - 2), np.float32), f"s_{y}"
            )
        )
        attributes = {"K": d_in, "N": d_out, "bits": width, "block_size": 32, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", [a, f"w_{y}", f"s_{y}"], [y], domain="com.microsoft", **attributes)
        )

    for layer in range(count):
        linear("x", shape.d_model, shape.d_ff, f"z_{layer}")
        nodes.append(helper.make_node("Relu", [f"z_{layer}"], [f"a_{layer}"]))
        hidden = f"a_{layer}"
        if shape.gated:
            linear("x", shape.d_model, shape.d_ff, f"u_{layer}")
            nodes.append(helper.make_node("Mul", [hidden, f"u_{layer}"], [f"h_{layer}"]))
            hidden = f"h_{layer}"
        linear(hidden, shape.d_ff, shape.d_model, f"y_{layer}")
    model = _summed(nodes, tensors, count, shape.d_model)
    return ort_run(model.SerializeToString(), x, threads), count


def own_linear(
    d_in: int, d_out: int, weights: custom_ops.Format, x: NDArray[np.float32], threads: int
) -> tuple[Run, int]:
    """Our dense product alone."""
    rng = np.random.default_rng(0)
    count = max(1, -(-WORKING_SET * 8 // int(d_in * d_out * bits_per_weight(weights))))
    nodes, tensors = [], [onnx.numpy_helper.from_array(np.zeros(d_out, np.float32), "b")]
    for i in range(count):
        stored, scales = random_weights(weights, d_out, d_in, rng)
        arrays = {f"w_{i}": stored, **({f"s_{i}": scales} if scales is not None else {})}
        tensors += [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
        nodes.append(
            helper.make_node(custom_ops.linear(weights), ["x", *arrays, "b"], [f"y_{i}"], domain=custom_ops.DOMAIN)
        )
    return ort_run(_summed(nodes, tensors, count, d_out, d_in).SerializeToString(), x, threads, ours=True), count


def ort_linear(d_in: int, d_out: int, width: int, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """MatMulNBits alone."""
    rng = np.random.default_rng(0)
    count = max(1, -(-WORKING_SET * 8 // (d_in * d_out * (width + 1))))
    nodes, tensors = [], [onnx.numpy_helper.from_array(np.full(d_out * d_in // 32, 0.001, np.float32), "s")]
    for i in range(count):
        tensors.append(
            onnx.numpy_helper.from_array(rng.integers(0, 256, (d_out, d_in // 32, 4 * width), np.uint8), f"w_{i}")
        )
        attributes = {"K": d_in, "N": d_out, "bits": width, "block_size": 32, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"w_{i}", "s"], [f"y_{i}"], domain="com.microsoft", **attributes)
        )
    return ort_run(_summed(nodes, tensors, count, d_out, d_in).SerializeToString(), x, threads), count
