"""Would one product for q_proj, k_proj and v_proj gain over three? Medians of paired ratios, one token.

    python benchmarks/fused_qkv.py --threads 2

Each product runs over weights beyond every cache, in one session of its own; the three are added up. Onnxruntime's
GroupQueryAttention would take the fused result as it is, so that nothing comes on top.
"""

from __future__ import annotations

import statistics

import click
import numpy as np
from ffn import interleave
from ffn_models import own_linear

from prosparse_export.library import library_info

SHAPES = {"llama-2-7b": (4096, 4096, 4096), "tinyllama": (2048, 2048, 256)}  # d_model, rows of q, rows of k and of v


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--weights", type=click.Choice(["bf16", "i8", "i4"]), multiple=True, default=("bf16", "i8", "i4"))
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True)
def main(weights: tuple[str, ...], threads: tuple[int, ...], rounds: int) -> None:
    """Time q_proj, k_proj and v_proj apart and as one."""
    click.echo(f"ISA {library_info().isa_used}")
    for name, (d_model, q, kv) in SHAPES.items():
        x = np.random.default_rng(1).standard_normal((1, d_model), np.float32)
        for kind in weights:
            for count in threads:
                runs = {str(rows): own_linear(d_model, rows, kind, x, count) for rows in {q, kv, q + 2 * kv}}
                times = interleave(runs, rounds)
                triples = zip(times[str(q)], times[str(kv)], times[str(q + 2 * kv)], strict=True)
                ratios = sorted((one + 2 * two) / fused for one, two, fused in triples)
                middle = ", ".join(f"{ratios[place * len(ratios) // 4]:.3f}" for place in (1, 3))
                fused = statistics.median(times[str(q + 2 * kv)])
                ratio = f"{statistics.median(ratios):.3f} [{middle}]"
                click.echo(f"{name:12} {kind:>4} {count}T fused {fused:.3f} ms, apart {ratio} times as long")


if __name__ == "__main__":
    main()
