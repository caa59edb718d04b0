"""Measure the kernels' tuning constants: builds of the library with other values take turns.

    python benchmarks/tuning.py --threads 2                     # every constant
    python benchmarks/tuning.py --constant prefetch --threads 1

Several tokens in float formats (native/src/tiles.cc): up_proj computes a neuron for all tokens if it is active for one
in `common` of them; up to `memory` tokens it always does. One token (native/src/dispatch.cc): rows are prefetched from
d_model = `prefetch` on; gate_proj and Linear prefetch `distance` bytes ahead, and with AVX2 read several panels of at
least `side` bytes at once. Many tokens in I8 and I4 (native/src/kernel_table.inc): blocks of neurons from `dot` tokens
on; in those, at accuracy level 4, 16 neurons that on average `shared` percent of the tokens use are computed for all
tokens. Without those kernels, panels are widened to float32 from `widen` tokens on
(native/src/gemm_panels_int.inc); AMX is used from `bf16x3` tokens on (native/src/amx_kernels.inc). Prints, per layer,
the milliseconds of the build in the second column and the other builds' times as multiples of it, medians of paired
ratios: above 1 is slower. Needs cmake.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import numpy as np
from common import in_turns, paired_ratio
from engines.ffn_graphs import SHAPES, Run
from engines.ffn_ours import FfnLayers

from prosparse_export.runtime.operator_library import library_info

KERNELS = Path(__file__).resolve().parent.parent / "native"
CONSTANTS: dict[str, tuple[str, tuple[int, ...], int]] = {  # definition, values, the baseline
    "common": ("PROSPARSE_COMMON", (1, 2, 4, 8, 16, 1000), 4),
    "memory": ("PROSPARSE_MEMORY_BOUND", (1, 2, 4, 8, 16), 4),
    "prefetch": ("PROSPARSE_FIRST_PREFETCHED", (0, 100_000), 0),
    "distance": ("PROSPARSE_PREFETCH_DISTANCE", (0, 1024, 2048, 3072, 4096), 0),
    "side": ("PROSPARSE_SIDE_BY_SIDE", (1, 1_000_000_000), 1_000_000_000),
    "dot": ("PROSPARSE_DOT_TOKENS", (2, 28, 48), 28),
    "shared": ("PROSPARSE_SHARED_PERCENT", (30, 38, 45, 50, 101), 38),
    "widen": ("PROSPARSE_WIDEN_TOKENS", (2, 1_000_000), 1_000_000),
    "bf16x3": ("PROSPARSE_BF16X3_TOKENS", (2, 1_000_000), 1_000_000),
}
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[float, ...]]] = {
    "common": (("tinyllama",), ("f32",), (8, 16, 32, 128), (0.5, 0.8, 0.89, 0.95)),
    "memory": (("tinyllama",), ("f32",), (2, 4, 8, 16), (0.5, 0.89)),
    "prefetch": (("smollm2", "tinyllama"), ("f32", "bf16", "i8", "i4"), (1,), (0.89,)),
    "distance": (("tinyllama",), ("f32", "bf16", "i8", "i4"), (1,), (0.89,)),
    "side": (("smollm2", "tinyllama", "llama-2-7b"), ("f32", "bf16", "i8", "i4"), (1,), (0.89,)),
    "dot": (("tinyllama",), ("i8", "i4"), (9, 16, 24, 32), (0.5, 0.89)),
    "shared": (("tinyllama",), ("i8", "i4"), (32, 128), (0.5, 0.89)),
    "widen": (("tinyllama",), ("i8", "i4"), (4, 8, 12, 16, 24, 32, 128), (0.89,)),
    "bf16x3": (("tinyllama",), ("f16", "bf16", "i8", "i4"), (4, 8, 16, 32, 128), (0.89,)),
}


def build(folder: Path, name: str, value: int) -> Path:
    """Build the library with one constant and return its path."""
    place = folder / f"{name}-{value}"
    definition = f"-DPROSPARSE_TUNING={CONSTANTS[name][0]}={value}"
    for command in (
        ["cmake", "-S", str(KERNELS), "-B", str(place), "-DCMAKE_BUILD_TYPE=Release", definition],
        ["cmake", "--build", str(place), "-j2", "--target", "prosparse_ops"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(place.glob("libprosparse_ops.*"))


def sessions(layers: FfnLayers, sparsity: float, threads: int, libraries: Mapping[int, Path]) -> dict[str, Run]:
    """Return a call of the layers for each library."""
    return {str(value): layers.session(sparsity, threads, library=library)[0] for value, library in libraries.items()}


def rows(name: str, threads: int, rounds: int, folder: Path) -> Iterator[str]:
    """Yield the lines of one constant's table."""
    _, values, base = CONSTANTS[name]
    if name == "widen" and library_info().isa_used == "avx512-amx":
        os.environ["PROSPARSE_ISA"] = "avx512-vnni"
    elif name == "bf16x3" and library_info().isa_used != "avx512-amx":
        yield "\nbf16x3: left out, this machine has no AMX"
        return
    libraries = {value: build(folder, name, value) for value in values}
    own = str(base)
    shapes, formats, counts, sparsities = CASES[name]
    yield f"\n| shape, weights, tokens, sparsity | ms with {own} | {' | '.join(f'{name} {v}' for v in values)} |"
    yield "|---|---" + "|---" * len(values) + "|"
    for shape, weights, n in itertools.product((SHAPES[s] for s in shapes), formats, counts):
        x = np.random.default_rng(1).standard_normal((n, shape.d_model), np.float32)
        layers = FfnLayers(shape, weights, x, folder, level=4 if name == "shared" else 0)
        for sparsity in sparsities:
            times = in_turns(sessions(layers, sparsity, threads, libraries), rounds, warm_up=2)
            cells = " | ".join(f"{paired_ratio(times[str(v)], times[own]).median:.2f}" for v in values)
            milliseconds = 1e3 * statistics.median(times[own]) / layers.count
            yield f"| {shape.name}, {weights}, {n}, {sparsity:.0%} | {milliseconds:.3f} | {cells} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--constant",
    "names",
    type=click.Choice(list(CONSTANTS)),
    multiple=True,
    default=tuple(CONSTANTS),
    help="Constant to vary.  [default: each in turn]",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True)
def main(names: tuple[str, ...], threads: int, rounds: int) -> None:
    """Build the library with other constants (needs cmake) and print a table of relative times for each constant."""
    click.echo(f"ISA {library_info().isa_used}, {threads} threads, medians of {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for line in rows(name, threads, rounds, Path(folder)):
                click.echo(line)


if __name__ == "__main__":
    main()
