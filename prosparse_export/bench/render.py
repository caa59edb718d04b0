"""Show the result of `prosparse bench` as text and as a chart."""

from __future__ import annotations

import io
from pathlib import Path

from prosparse_export.atomic_write import atomic_write
from prosparse_export.bench.result import BenchResult, Spread, Timing
from prosparse_export.errors import ProSparseError

__all__ = ["as_text", "plot"]


def as_text(result: BenchResult) -> str:
    """Return the lines for a terminal."""
    memory = "unknown" if result.resident_bytes is None else f"{result.resident_bytes / 1e6:,.0f} MB"
    loop, others = result.loop, list(result.other_microseconds.items())[:8]
    lines = [
        f"{result.name}: {result.machine}",
        f"load {result.load_seconds:.2f} s, resident memory {memory}, files {result.file_bytes / 1e6:,.0f} MB",
        "",
        f"{'tokens/s, median [quartiles]':32}{'sparse':>26}{'dense baseline':>26}{'speedup':>22}",
        *(_line(timing) for timing in result.timings),
        "",
        *(f"time to first token, prompt of {t.tokens}: {1e3 * t.seconds:.1f} ms" for t in result.timings[1:]),
        "",
        f"{'FFN':32}{'sparsity':>10}{'inactive':>10}{'us/token':>12}{'max speedup':>14}",
        *(
            f"{layer.module:32}{layer.sparsity:>10.2%}{layer.skipped:>10.2%}{layer.microseconds:>12.1f}"
            f"{f'{layer.ceiling:.2f}x':>14}"
            for layer in result.layers
        ),
        "",
        "other operators, us/token: " + ", ".join(f"{op} {time:.0f}" for op, time in others),
        f"outside onnxruntime's call: {loop.outside_microseconds.median:.1f} us"
        f" of {loop.microseconds.median:.0f} us/token,"
        f" {loop.outside_share.median:.2%} [{loop.outside_share.low:.2%}, {loop.outside_share.high:.2%}];"
        f" a loop over forward() takes {_spread(loop.unbound_ratio, 'x')} as long",
        "",
        f"memory bandwidth {result.bandwidth / 1e9:.1f} GB/s: reading a token's bytes takes"
        f" {1e3 * result.floor_seconds:.2f} ms, decode took {1e3 * result.timings[0].seconds:.2f} ms/token",
        f"max speedup of decode by bytes read: {result.ceiling:.2f}x"
        f" (FFNs are {result.ffn_share:.1%} of a dense token's bytes)",
    ]
    if result.reached is not None and result.timings[0].ratio is not None:
        lines.append(f"measured: {result.timings[0].ratio.median:.2f}x, {result.reached:.0%} of the maximum")
    return "\n".join(lines)


def _line(timing: Timing) -> str:
    name = f"decode after {timing.tokens} tokens" if timing.name == "decode" else f"prefill of {timing.tokens} tokens"
    return f"{name:32}{_spread(timing.sparse):>26}{_spread(timing.dense):>26}{_spread(timing.ratio, 'x'):>22}"


def _spread(spread: Spread | None, suffix: str = "") -> str:
    if spread is None:
        return "-"
    decimals = 2 if suffix or spread.median < 100 else 0
    return f"{spread.median:.{decimals}f}{suffix} [{spread.low:.{decimals}f}, {spread.high:.{decimals}f}]"


def plot(result: BenchResult, path: Path) -> None:
    """Draw tokens per second, sparse and dense, and each FFN's time and activation sparsity.

    Raises:
        ProSparseError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProSparseError(
            "plot: needs matplotlib, which is not installed", hint="pip install '.[report]'"
        ) from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{t.name}\n{t.tokens}" for t in result.timings]
    for k, (label, color, hatch) in enumerate((("sparse", "#0072B2", ""), ("dense baseline", "#E69F00", "//"))):
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
    right.set(xlabel="layer", ylabel="FFN, µs/token (bars)")
    other = right.twinx()
    other.plot([100 * layer.sparsity for layer in result.layers], "s--", color="#D55E00", ms=4)
    other.set_ylabel("activation sparsity, % (squares)")
    other.set_ylim(0, 100)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.lstrip(".") or "png", dpi=120)
    atomic_write(path, stream.getvalue())
