"""`prosparse bench`'s result as text and as a chart."""

from __future__ import annotations

from pathlib import Path

from prosparse_export.bench.result import BenchResult, Spread, Timing
from prosparse_export.errors import ProSparseError

__all__ = ["plot", "table"]


def table(result: BenchResult) -> str:
    """Return the lines for a terminal."""
    memory = "?" if result.resident_bytes is None else f"{result.resident_bytes / 1e6:,.0f}"
    lines = [
        f"{result.name}: {result.machine}",
        f"load {result.load_seconds:.2f} s, resident {memory} MB for {result.file_bytes / 1e6:,.0f} MB of files",
        "",
        f"{'tokens/s, median [quartiles]':32}{'sparse':>26}{'dense':>26}{'dense / sparse time':>22}",
        *(_line(timing) for timing in result.timings),
        "",
        *(f"time to the first token, prompt of {t.tokens}: {1e3 * t.seconds:.1f} ms" for t in result.timings[1:]),
        "",
        f"{'block':32}{'sparsity':>10}{'us a token':>12}{'most to gain':>14}",
        *(
            f"{layer.module:32}{layer.sparsity:>10.2%}{layer.microseconds:>12.1f}{f'x{layer.ceiling:.2f}':>14}"
            for layer in result.layers
        ),
        "",
        "elsewhere, us a token: " + ", ".join(f"{k} {v:.0f}" for k, v in list(result.other_microseconds.items())[:8]),
        "",
        f"bandwidth {result.bandwidth / 1e9:.1f} GB/s: a token's bytes take {1e3 * result.floor_seconds:.2f} ms,"
        f" the token took {1e3 * result.timings[0].seconds:.2f} ms",
        f"ceiling of decode by sparsity: x{result.ceiling:.2f}"
        f" (blocks are {result.ffn_share:.1%} of a dense token's bytes)",
    ]
    if result.reached is not None and result.timings[0].ratio is not None:
        lines.append(
            f"reached: x{result.timings[0].ratio.median:.2f}, {result.reached:.0%} of it, against {result.dense}"
        )
    return "\n".join(lines)


def _line(timing: Timing) -> str:
    name = f"decode at {timing.tokens} tokens" if timing.name == "decode" else f"prefill of {timing.tokens}"
    return f"{name:32}{_spread(timing.sparse):>26}{_spread(timing.dense):>26}{_spread(timing.ratio, 'x'):>22}"


def _spread(spread: Spread | None, prefix: str = "") -> str:
    if spread is None:
        return "-"
    digits = 2 if prefix or spread.median < 100 else 0
    return f"{prefix}{spread.median:.{digits}f} [{spread.low:.{digits}f}, {spread.high:.{digits}f}]"


def plot(result: BenchResult, path: Path) -> None:
    """Draw tokens per second, sparse and dense, and the blocks' times with their sparsity.

    Raises:
        ProSparseError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProSparseError(
            "plot: expected matplotlib, got none", hint="pip install 'prosparse-export[report]'"
        ) from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{t.name}\n{t.tokens}" for t in result.timings]
    for k, (label, color, hatch) in enumerate((("sparse", "#0072B2", ""), ("dense", "#E69F00", "//"))):
        spreads = [t.sparse if label == "sparse" else t.dense for t in result.timings]
        shown = [(i, s) for i, s in enumerate(spreads) if s is not None]
        if shown:
            left.bar(
                [i + 0.4 * k for i, _ in shown],
                [s.median for _, s in shown],
                0.4,
                yerr=[[s.median - s.low for _, s in shown], [s.high - s.median for _, s in shown]],
                label=label,
                color=color,
                hatch=hatch,
            )
    left.set_xticks([i + 0.2 for i in range(len(names))], names)
    left.set(ylabel="tokens/s", yscale="log")
    left.set_title(result.name, loc="left", fontsize=9)
    left.legend()
    right.bar(range(len(result.layers)), [layer.microseconds for layer in result.layers], color="#0072B2")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="block", ylabel="us a token (bars)")
    other = right.twinx()
    other.plot([100 * layer.sparsity for layer in result.layers], "s--", color="#D55E00", ms=4)
    other.set_ylabel("sparsity, % (squares)")
    other.set_ylim(0, 100)
    figure.savefig(path, dpi=120)
