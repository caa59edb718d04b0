"""Attention of a decode step or of a chunk of a prompt, alone: ours against onnxruntime's, by KV cache.

    python benchmarks/attention.py --tokens 3900
    python benchmarks/attention.py --tokens 3900 --new 512

One graph of a model's attention nodes for each operator, each node with its own cache, which is updated in place;
random numbers; median milliseconds in turns. The megabytes are those of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np
import onnx
import onnxruntime
from common import in_turns, machine, paired_ratio
from onnx import TensorProto, helper, numpy_helper

from graph_passes.cached_rows import cache_row_bytes
from graph_passes.custom_ops import DOMAIN, cached_attention
from prosparse_export import register

_PAUSE = 0.05  # seconds between operators: threads of the one before stop spinning
OURS_FLOAT32, OURS_INT8 = "ours, float32", "ours, int8"
_BY_CACHE = {"f32": OURS_FLOAT32, "i8-token": OURS_INT8}
FLOAT32, INT8 = "onnxruntime, float32", "onnxruntime, int8"
OURS = {OURS_FLOAT32: cached_attention("F32", rotary=True), OURS_INT8: cached_attention("I8", rotary=True)}


@dataclass(frozen=True)
class Shape:
    """A model's attention: layers, query heads, KV heads, elements per head."""

    layers: int
    heads: int
    kv_heads: int
    dim: int


SHAPES = {
    "llama-2-7b, 8 layers": Shape(8, 32, 32, 128),
    "tinyllama": Shape(22, 32, 4, 64),
    "smollm2-135m": Shape(30, 9, 3, 64),
}


def graph(kind: str, shape: Shape, positions: int) -> onnx.ModelProto:
    """Return a graph of ``shape.layers`` attention nodes that share one input."""
    value = helper.make_tensor_value_info
    cache_type = TensorProto.FLOAT if kind in (FLOAT32, OURS_FLOAT32) else TensorProto.INT8
    width = cache_row_bytes(shape.dim) if kind == OURS_INT8 else shape.dim
    cache = ["b", shape.kv_heads, "slots", width]
    inputs = [
        value("qkv", TensorProto.FLOAT, ["b", "s", (shape.heads + 2 * shape.kv_heads) * shape.dim]),
        value("seqlens", TensorProto.INT32, ["b"]),
        value("total", TensorProto.INT32, []),
    ]
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(shape.dim // 2) / (shape.dim // 2))
    arrays = {"cos": np.cos(angles), "sin": np.sin(angles), "step": np.full((1, shape.kv_heads, 1, shape.dim), 0.03)}
    attributes = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads, "scale": shape.dim**-0.5}
    if kind in OURS:
        attributes |= {"domain": DOMAIN, "local_window_size": 0 if kind == OURS_INT8 else -1}
    else:
        attributes |= {"domain": "com.microsoft", "do_rotary": 1}
    if kind == INT8:
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    nodes, outputs = [], []
    for layer in range(shape.layers):
        names = [f"{part}.{layer}" for part in ("past_k", "past_v", "y", "k", "v")]
        inputs += [value(name, cache_type, cache) for name in names[:2]]
        outputs += [value(names[2], TensorProto.FLOAT, None), *(value(name, cache_type, cache) for name in names[3:])]
        first, last = (
            (["qkv"], []) if kind in OURS else (["qkv", "", ""], ["", "", "", "step", "step"] if kind == INT8 else [])
        )
        op = OURS.get(kind, "GroupQueryAttention")
        nodes.append(
            helper.make_node(op, [*first, *names[:2], "seqlens", "total", "cos", "sin", *last], names[2:], **attributes)
        )
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    domains = [helper.make_opsetid(name, number) for name, number in (("", 20), (DOMAIN, 1), ("com.microsoft", 1))]
    return helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs, constants), opset_imports=domains, ir_version=9
    )


def bound_step(kind: str, shape: Shape, tokens: int, new: int, threads: int) -> tuple[Callable[[], None], int]:
    """Return what runs ``new`` tokens after ``tokens`` in place, and the bytes of the caches."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: int8's scales are initializers of every graph
    register(options)
    session = onnxruntime.InferenceSession(graph(kind, shape, tokens + new).SerializeToString(), options)
    io, rng, total = session.io_binding(), np.random.default_rng(0), 0
    feeds = {
        "qkv": rng.standard_normal((1, new, (shape.heads + 2 * shape.kv_heads) * shape.dim)).astype(np.float32),
        "seqlens": np.array([tokens + new - 1], np.int32),
        "total": np.array(tokens + new, np.int32),
    }
    for name, array in feeds.items():
        io.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for layer in range(shape.layers):
        io.bind_output(f"y.{layer}", "cpu")
        for part in "kv":
            width = cache_row_bytes(shape.dim) if kind == OURS_INT8 else shape.dim
            is_float = kind in (FLOAT32, OURS_FLOAT32)
            array = np.empty((1, shape.kv_heads, tokens + new, width), np.float32 if is_float else np.int8)
            array[:] = rng.standard_normal(array.shape[2:]) if is_float else rng.integers(-100, 100, array.shape[2:])
            if kind == OURS_INT8:  # scales of about 0.03: bfloat16 0x3cf6
                array[..., shape.dim :: 2], array[..., shape.dim + 1 :: 2] = -10, 0x3C
            total += array.nbytes
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            io.bind_ortvalue_input(f"past_{part}.{layer}", buffer)
            io.bind_ortvalue_output(f"{part}.{layer}", buffer)
    return lambda: session.run_with_iobinding(io), total


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=f"\b\n{__doc__}")
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, help="Default: all.")
@click.option("--tokens", type=int, multiple=True, default=(128, 1024, 3900), show_default=True)
@click.option("--new", type=int, default=1, show_default=True, help="New tokens.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True)
@click.option(
    "--kv-cache",
    type=click.Choice(list(_BY_CACHE)),
    default="f32",
    show_default=True,
    help="Of our operator that the others are compared with.",
)
@click.option("--without", multiple=True, help="Operators to skip, by name.")
def main(
    shapes: tuple[str, ...],
    tokens: tuple[int, ...],
    new: int,
    threads: int,
    rounds: int,
    kv_cache: str,
    without: tuple[str, ...],
) -> None:
    """Parse, time, print."""
    ours = _BY_CACHE[kv_cache]
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in shapes or SHAPES:
        for count in tokens:
            kinds = [kind for kind in (*OURS, INT8, FLOAT32) if kind == ours or kind not in without]
            steps = {kind: bound_step(kind, SHAPES[name], count, new, threads) for kind in kinds}
            times = in_turns({kind: step for kind, (step, _) in steps.items()}, rounds, pause=_PAUSE)
            for kind, seconds in times.items():
                milliseconds = 1e3 * sorted(seconds)[len(seconds) // 2]
                click.echo(
                    f"{name:22}{count:6} tokens, {new} new  {kind:22}{milliseconds:9.2f} ms  "
                    f"{steps[kind][1] / 1e6:8.1f} MB  {paired_ratio(seconds, times[ours])}"
                )


if __name__ == "__main__":
    main()
