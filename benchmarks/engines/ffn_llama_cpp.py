"""Dense FFNs in ggml, through the library inside the llama-cpp-python package."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.ffn_graphs import Run, Shape

TYPES = {"Q4_0": (2, 18), "Q8_0": (8, 34)}  # ggml_type, bytes of a block of 32
_F32 = 0


class _Params(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def _library() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError("llama-cpp-python is not installed")
    folder = Path(spec.origin).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
    pointers = {
        base: [
            "ggml_init",
            "ggml_new_tensor_2d",
            "ggml_mul_mat",
            "ggml_relu",
            "ggml_mul",
            "ggml_add",
            "ggml_new_graph_custom",
            "ggml_backend_alloc_ctx_tensors_from_buft",
            "ggml_backend_reg_dev_get",
            "ggml_backend_reg_get_proc_address",
        ],
        cpu: ["ggml_backend_cpu_init", "ggml_backend_cpu_reg"],
    }
    for library, names in pointers.items():
        for name in names:
            getattr(library, name).restype = c_void_p
    base.ggml_init.argtypes = [_Params]
    base.ggml_new_tensor_2d.argtypes = [c_void_p, c_int, c_int64, c_int64]
    for name in ("ggml_mul_mat", "ggml_mul", "ggml_add"):
        getattr(base, name).argtypes = [c_void_p, c_void_p, c_void_p]
    base.ggml_relu.argtypes = [c_void_p, c_void_p]
    base.ggml_new_graph_custom.argtypes = [c_void_p, c_size_t, c_bool]
    base.ggml_build_forward_expand.argtypes = [c_void_p, c_void_p]
    base.ggml_backend_alloc_ctx_tensors_from_buft.argtypes = [c_void_p, c_void_p]
    base.ggml_backend_tensor_set.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t]
    base.ggml_backend_graph_compute.argtypes = [c_void_p, c_void_p]
    base.ggml_backend_reg_dev_get.argtypes = [c_void_p, c_size_t]
    base.ggml_backend_reg_get_proc_address.argtypes = [c_void_p, c_char_p]
    cpu.ggml_backend_cpu_set_n_threads.argtypes = [c_void_p, c_int]
    base.ggml_backend_dev_buffer_type.argtypes = [c_void_p]
    base.ggml_backend_dev_buffer_type.restype = c_void_p
    return base, cpu


def llama_dense(shape: Shape, kind: str, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """Return a call of all layers with weights of ``kind``, repacked for this CPU where ggml can."""
    base, cpu = _library()
    kind_number, block_bytes = TYPES[kind]
    count = shape.layers(block_bytes / 4)
    rng = np.random.default_rng(0)
    registry = cpu.ggml_backend_cpu_reg()
    device = base.ggml_backend_reg_dev_get(registry, 0)
    plain = base.ggml_backend_dev_buffer_type(device)
    weights = base.ggml_init(_Params(1 << 24, None, True))
    work = base.ggml_init(_Params(1 << 26, None, True))
    sizes: list[tuple[int, int]] = []

    def tensor(d_in: int, d_out: int) -> int:
        created = base.ggml_new_tensor_2d(weights, kind_number, d_in, d_out)
        sizes.append((created, d_in // 32 * d_out))
        return int(created)

    source = base.ggml_new_tensor_2d(work, _F32, shape.d_model, len(x))
    total = None
    for _ in range(count):
        hidden = base.ggml_relu(work, base.ggml_mul_mat(work, tensor(shape.d_model, shape.d_ff), source))
        if shape.gated:
            hidden = base.ggml_mul(work, hidden, base.ggml_mul_mat(work, tensor(shape.d_model, shape.d_ff), source))
        y = base.ggml_mul_mat(work, tensor(shape.d_ff, shape.d_model), hidden)
        total = y if total is None else base.ggml_add(work, total, y)
    graph = base.ggml_new_graph_custom(work, 8 * count + 64, False)
    base.ggml_build_forward_expand(graph, total)

    # The repacking buffer type is one of the device's extra ones; Q8_0 has none on x86.
    buffer = None
    if kind == "Q4_0" and shape.d_model % 256 == 0:
        address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
            index = 0
            while extra and extra[index]:
                buffer = extra[index]
                index += 1
    base.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer or plain)
    base.ggml_backend_alloc_ctx_tensors_from_buft(work, plain)
    for created, blocks in sizes:
        data = rng.integers(0, 256, (blocks, block_bytes), np.uint8)
        data[:, :2] = np.frombuffer(
            np.float16(shape.d_model**-0.5 / (4.6 if kind == "Q4_0" else 73)).tobytes(), np.uint8
        )
        base.ggml_backend_tensor_set(created, data.ctypes.data, 0, data.nbytes)
    base.ggml_backend_tensor_set(source, np.ascontiguousarray(x).ctypes.data, 0, x.nbytes)
    backend = cpu.ggml_backend_cpu_init()
    cpu.ggml_backend_cpu_set_n_threads(backend, threads)
    return lambda: base.ggml_backend_graph_compute(backend, graph), count
