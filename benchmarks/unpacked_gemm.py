"""Would several tokens gain if our operator called onnxruntime's own product? Medians of paired ratios.

    python benchmarks/unpacked_gemm.py --threads 2
    python benchmarks/unpacked_gemm.py --shape tinyllama --tokens 16 --tokens 128

A custom operator may call another (CreateOp, InvokeOp). A product called so gets its weights with the call: it cannot
pack them in advance, as onnxruntime does for constant ones. Here that is a graph whose weights are inputs, stored as
our operator stores them: up [d_ff, d_model], down [d_ff, d_model]. Compared, in one process and in turns: our
operator; the block by products of unpacked weights; the block by onnxruntime with packed weights. "up" is one product
of unpacked weights alone, what the operator would call where nearly every neuron is active for some token, beside a
third of our operator's own dense time.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
from ffn import SHAPES, interleave
from ffn_models import Blocks, Run, Shape, ort_dense
from numpy.typing import NDArray
from onnx import TensorProto, helper


def unpacked(shape: Shape, x: NDArray[np.float32], threads: int, *, only_up: bool) -> tuple[Run, int]:
    """Return a call of blocks whose weights are inputs of the graph, and their number."""
    count = shape.layers(32.0)
    rng = np.random.default_rng(0)
    nodes, inputs = [], {"x": x}
    for layer in range(count):
        names = ["up"] if only_up else ["gate", "up", "down"]
        for name in names:
            size = (shape.d_ff, shape.d_model)
            inputs[f"{name}_{layer}"] = rng.standard_normal(size, np.float32) * np.float32(shape.d_model**-0.5)
        nodes.append(helper.make_node("Gemm", ["x", f"up_{layer}"], [f"u_{layer}"], transB=1))
        if only_up:
            continue
        nodes.append(helper.make_node("Gemm", ["x", f"gate_{layer}"], [f"z_{layer}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"z_{layer}"], [f"a_{layer}"]))
        nodes.append(helper.make_node("Mul", [f"a_{layer}", f"u_{layer}"], [f"h_{layer}"]))
        nodes.append(helper.make_node("MatMul", [f"h_{layer}", f"down_{layer}"], [f"y_{layer}"]))
    ends = [f"{'u' if only_up else 'y'}_{layer}" for layer in range(count)]
    nodes.append(helper.make_node("Sum", ends, ["y"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "unpacked",
        [value(name, TensorProto.FLOAT, list(array.shape)) for name, array in inputs.items()],
        [value("y", TensorProto.FLOAT, [len(x), shape.d_ff if only_up else shape.d_model])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding), count


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, default=("tinyllama",))
@click.option("--tokens", "counts", type=click.IntRange(1), multiple=True, default=(4, 16, 32, 128))
@click.option("--sparsity", "sparsities", type=click.FloatRange(0, 1), multiple=True, default=(0.0, 0.5, 0.89))
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(
    shapes: tuple[str, ...], counts: tuple[int, ...], sparsities: tuple[float, ...], threads: int, rounds: int
) -> None:
    """Print ours, and both products as multiples of its time."""
    click.echo(f"f32, {threads} threads, medians of {rounds}\n")
    click.echo(
        "| shape | tokens | sparsity | ours, ms | unpacked | packed | up alone, unpacked | a third of our dense |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for shape in (SHAPES[name] for name in shapes):
            for n in counts:
                x = np.random.default_rng(1).standard_normal((n, shape.d_model), np.float32)
                blocks = Blocks(shape, "f32", x, Path(folder))
                others = {
                    "unpacked": unpacked(shape, x, threads, only_up=False),
                    "packed": ort_dense(shape, "f32", x, threads),
                    "up": unpacked(shape, x, threads, only_up=True),
                    "dense": (blocks.session(0.0, threads, dense=True)[0], blocks.count),
                }
                for sparsity in sparsities:
                    run, measured = blocks.session(sparsity, threads)
                    times = interleave({"ours": (run, blocks.count), **others}, rounds)
                    middle = {name: statistics.median(values) for name, values in times.items()}
                    ratio = {
                        name: statistics.median(b / a for a, b in zip(times["ours"], times[name], strict=True))
                        for name in ("unpacked", "packed")
                    }
                    click.echo(
                        f"| {shape.name} | {n} | {measured:.0%} | {middle['ours']:.2f} | {ratio['unpacked']:.2f} "
                        f"| {ratio['packed']:.2f} | {middle['up']:.2f} ms | {middle['dense'] / 3:.2f} ms |"
                    )


if __name__ == "__main__":
    main()
