"""Sessions of the operator library, and the bound on float32 sums."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

from prosparse_export import register

U = 2.0**-24  # unit roundoff of float32


def gamma(n: int) -> float:
    """Bound on the relative error of a float32 sum of ``n`` terms, in any order."""
    return n * U / (1 - n * U)


def session(model: onnx.ModelProto | Path, *, library: bool, threads: int = 2) -> onnxruntime.InferenceSession:
    """A session on the CPU, with the operator library or with the function bodies alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # a heap block per tensor, so that AddressSanitizer sees its ends
    if library:
        register(options)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
