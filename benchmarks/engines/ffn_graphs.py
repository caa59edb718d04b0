"""FFN graphs with random weights: shapes, stored weights, and sessions of onnxruntime.

Each engine computes ``sum over l of ffn_l(x)`` in one call, over more layers than any cache holds, so the layers share
the cost of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from graph_passes import FORMAT_SPECS, FfnFormat, Format, custom_ops
from prosparse_export import register
from prosparse_export.analysis.roofline import Ffn

Run = Callable[[], object]
Array = NDArray[np.generic]


def _last_level_cache() -> int:
    """Return the size of the L3 cache in bytes as Linux gives it; 0 where it does not."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    text = path.read_text(encoding="ascii").strip() if path.is_file() else "0K"
    return int(text.removesuffix("K")) << 10


WORKING_SET = max(192 << 20, _last_level_cache() * 3 // 2)  # bytes of weights that a round reads at least


@dataclass(frozen=True)
class Shape:
    """An FFN's sizes."""

    name: str
    d_model: int
    d_ff: int
    gated: bool = True

    @property
    def matrices(self) -> int:
        """Matrices of an FFN."""
        return 3 if self.gated else 2

    def cost(self, weights: FfnFormat, sparsity: float = 0.0) -> Ffn:
        """Return what an FFN in one of our formats reads."""
        return Ffn(self.d_model, self.d_ff, self.gated, weights, sparsity)

    def layers(self, bits: float, working_set: int = WORKING_SET) -> int:
        """Layers whose weights exceed ``working_set`` bytes, by default every cache."""
        return max(1, -(-working_set * 8 // int(self.matrices * self.d_model * self.d_ff * bits)))


SHAPES = {
    "llama-2-7b": Shape("llama-2-7b", 4096, 11008),
    "tinyllama": Shape("tinyllama", 2048, 5632),
    "opt-6.7b": Shape("opt-6.7b", 4096, 16384, gated=False),
    "smollm2": Shape("smollm2", 576, 1536),
}


def random_weights(weights: Format, rows: int, cols: int, rng: np.random.Generator) -> tuple[Array, Array | None]:
    """Return stored weights and scales (None for float formats) of about unit variance per row of ``cols``."""
    size = cols**-0.5
    spec = FORMAT_SPECS[weights]
    if not spec.group:
        return (rng.standard_normal((rows, cols), np.float32) * np.float32(size)).astype(spec.dtype), None
    scales = (rows, spec.groups(cols))
    if spec.bits == 8:
        integers = rng.integers(-127, 128, (rows, cols), np.int8)
        return integers, np.full(scales, size / 73, np.float16)
    spread = float(np.std(spec.table or range(-8, 8)))
    return rng.integers(0, 256, (rows, spec.stored_columns(cols)), np.uint8), np.full(scales, size / spread, np.float16)


def summed(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], count: int, d_out: int, d_in: int | None = None
) -> onnx.ModelProto:
    """Return a model that adds up ``y_0`` to ``y_{count - 1}``."""
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
